"""What the learner's own reading of a run says: alarms, audit, failures, replicas and sample thoughts.

Design: the journal and the alarms belong to the learner, which nothing here may import, so its module is
named to ``python -m`` and answers with one JSON object. The price is a process per run. Where it is not
installed, or fails, the page does without and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MODULE = "forethought.run.review"


@dataclass(frozen=True, slots=True)
class Review:
    """The object that the learner's review prints; ``problems`` are sentences about what it lacks.

    Example:
        ``Review(failures={"out of memory": 3})``
    """

    alarms: tuple[dict[str, Any], ...] = ()
    audit: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()


def review_of(directory: Path) -> Review:
    """Ask for the review of a run directory; never fails."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", _MODULE, str(directory.resolve())],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Review(problems=(f"Journal and alarms cannot be read: {last}.",))
    return _of(answer)


def _of(answer: Mapping[str, Any]) -> Review:
    return Review(
        alarms=tuple(answer["alarms"]),
        audit=answer["audit"] or {},
        failures=answer["failures"],
        replicas=answer["replicas"],
        samples=tuple(answer["samples"]),
        problems=tuple(map(_sentence, answer["problems"])),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
