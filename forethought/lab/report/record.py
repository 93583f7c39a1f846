"""The contents of a run directory, as far as they can be read.

Design: reading never fails. A missing or damaged file becomes a sentence in ``missing``, which the page
shows in addition to the available data; only a path that is not a directory is refused, because it is a
typo. The price is that every field may be empty, and everything that shows one must handle that.
"""

from __future__ import annotations

import fcntl
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethought.errors import InvalidInput
from forethought.lab.report.numbers import number
from forethought.run.directory import RunDirectory
from forethought.run.review import Review, review

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as stored on disk. ``label`` is unique on its page; ``rows`` are lines of metrics.

    ``evaluation`` is ``eval.json``, if there is one. ``missing`` are sentences.

    Example:
        ``read_runs([Path("runs/demo/rlp")])[0].rows[-1]["reward_mean"]``
    """

    label: str
    directory: RunDirectory
    status: str
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    review: Review = field(default_factory=Review)
    missing: tuple[str, ...] = ()

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """A resolved setting, or ``default`` if the configuration or the section is missing."""
        of_section = self.config.get(section)
        return of_section.get(key, default) if isinstance(of_section, dict) else default

    @property
    def failure(self) -> str:
        """Why the run failed, by its summary; empty if it did not."""
        return str(self.summary.get("failure")) if self.status == "failed" else ""

    @property
    def last_step(self) -> int:
        """The last recorded step; 0 before the first."""
        return int(number(self.rows[-1].get("step")) or 0) if self.rows else 0


_FILES_OF_A_RUN = (
    "config.toml",
    "up.toml",
    "metrics.jsonl",
    "summary.json",
    "eval.json",
    "checkpoints",
    "journal",
)


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs of the given directories, in order, with unique labels.

    Raises:
        InvalidInput: a path is not a directory, holds no file of a run, or is given twice.
    """
    for path in paths:
        if not path.is_dir():
            raise InvalidInput(
                f"{path} is not a directory; expected a run directory (run.directory of the run)"
            )
        if not any((path / name).exists() for name in _FILES_OF_A_RUN):
            raise InvalidInput(
                f"{path} holds no file of a run ({', '.join(_FILES_OF_A_RUN)}); expected a run directory "
                "(run.directory of the run)"
            )
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidInput("the same run directory is given twice; expected each once")
    return [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest path suffixes that are unique."""
    parts = [path.resolve().parts for path in paths]
    for size in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-size:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def _read(path: Path, label: str) -> RunRecord:
    directory, missing = RunDirectory(path), _Missing()
    config = missing.of(directory.config, _toml, "the resolved configuration")
    rows = missing.rows(directory)
    is_owned = _is_owned(directory)
    if is_owned and not directory.summary.exists():
        summary: dict[str, Any] = {}  # not missing: the run has not ended yet
    else:
        summary = missing.of(
            directory.summary, _json, "the summary that a learner writes when it ends"
        )
    evaluation = _optional(directory.root / "eval.json", missing)
    reviewed = review(directory)
    missing.sentences += reviewed.problems
    if not directory.complete_checkpoints():
        missing.sentences.append("There is no checkpoint.")
    status = "running" if is_owned else _status(config, rows, summary)
    return RunRecord(
        label,
        directory,
        status,
        config,
        rows,
        summary,
        evaluation,
        reviewed,
        tuple(missing.sentences),
    )


class _Missing:
    """Reads files and collects sentences about those that could not be read."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def of(self, path: Path, parse: Callable[[str], Any], what: str) -> dict[str, Any]:
        """The table in a file; if there is none, empty, with a sentence about it."""
        if not path.exists():
            self.sentences.append(f"{path.name} is not there: {what}.")
            return {}
        try:
            read = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.sentences.append(f"{path.name} cannot be read: {error}.")
            return {}
        if isinstance(read, dict):
            return read
        self.sentences.append(f"{path.name} contains no table: {what}.")
        return {}

    def rows(self, directory: RunDirectory) -> list[Row]:
        """The valid lines of metrics."""
        try:
            read: list[Any] = directory.read_metrics()
        except (OSError, ValueError):
            return []  # the review reports this error
        rows = [
            row for row in read if isinstance(row, dict) and number(row.get("step")) is not None
        ]
        if not rows:
            self.sentences.append("metrics.jsonl contains no step: none has finished.")
        return rows


def _optional(path: Path, missing: _Missing) -> dict[str, Any]:
    return missing.of(path, _json, "an evaluation") if path.exists() else {}


def _toml(text: str) -> Any:
    return tomllib.loads(text)


def _json(text: str) -> Any:
    return json.loads(text)


def _status(config: dict[str, Any], rows: list[Row], summary: dict[str, Any]) -> str:
    """The status of a run without a live learner: ``done``, ``stopped``, ``failed``, ``ended without a
    summary`` or ``empty``.

    A summary older than the last step is from an earlier learner.
    """
    last = number(rows[-1].get("step")) if rows else None
    steps = number(summary.get("steps"))
    if steps is None or (last is not None and last > steps):
        return "empty" if last is None else "ended without a summary"
    if summary.get("failure"):
        return "failed"
    learner = config.get("learner")
    wanted = number(learner.get("steps")) if isinstance(learner, dict) else None
    return "done" if wanted is None or steps >= wanted else "stopped"


def _is_owned(directory: RunDirectory) -> bool:
    """Whether a live learner holds the run's lock; probed with a shared lock, released at once."""
    try:
        with (directory.root / "lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
