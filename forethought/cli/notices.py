"""What the processes of ``up`` have to say: warnings and alarms, what was read, the type computed in.

Design: the logs are read as they grow, so a process says a thing once, in its own words, and the log has
the rest (times, tracebacks). A message that differs from an earlier one only in its numbers is not
repeated, by whichever replica. The price is that a warning's later numbers are only in the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from forethought.cli.progress import LineTail

_RECORD = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \S+ ([A-Z]+) (\S+): (.*)")  # forethought.telemetry.log
_LEVELS = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}
_SAID = re.compile(r"(corpus|precision|warm-up): (.*)")
"""The learner's lines that are for people: what was read, what it computes in, whether it warms up."""
_LEARNER = ("trainer", "trainer.assembly", "trainer.warmup.preparation")
_READER = "forethought.corpus"
"""Of all its processes the corpus says the same, and ``up`` says it once."""


class Notices:
    """Says what is new in the logs of processes.

    Example:
        ``notices.watch("trainer", logs / "trainer.log")``, then ``notices.read()`` now and then
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._tails: dict[str, LineTail] = {}
        self._said: set[str] = set()

    def watch(self, name: str, log: Path) -> None:
        """From now on, read what a process appends to its log."""
        self._tails.setdefault(name, LineTail(log))

    def read(self) -> None:
        """Say what has been logged since the last call."""
        for name, tail in self._tails.items():
            for line in tail.lines():
                text = notice(name, line.decode("utf-8", "replace"))
                if text is not None:
                    self._once(text)

    def _once(self, text: str) -> None:
        said = re.sub(r"\d+", "#", text)  # also in the name: rollout-1 and rollout-2 say it once
        if said not in self._said:
            self._said.add(said)
            self._say(text)


def notice(name: str, line: str) -> str | None:
    """A log line as ``up`` prints it, or None if it is only for the log.

    Example:
        ``notice("trainer", "14:03:59.120 trainer WARNING trainer.publisher: no replica")`` is
        ``"warning    trainer: no replica"``
    """
    found = _RECORD.fullmatch(line)
    if found is None:
        return None
    level, logger, message = found.groups()
    is_reader = logger.startswith(_READER)
    if level in _LEVELS:
        return f"{_LEVELS[level]:<10} {'corpus' if is_reader else name}: {message}"
    if is_reader:
        return f"{'corpus':<10} {message}"
    said = _SAID.fullmatch(message) if logger in _LEARNER else None
    return f"{said[1]:<10} {said[2]}" if said else None
