"""The log of failed tasks: each kind of failure once, as soon as its result arrives.

Design: at arrival, not when the batch closes, which may be ``learner.task_timeout_s`` later. Reasons that
differ only in their numbers are one kind; the journal holds the reason of every failed task. The price is
that a failure that comes back after it was remedied is not logged again.
"""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)

_MAX_KINDS = 20
"""A reason may name a request or an address, and then no two are equal."""


class FailureLog:
    """Logs failures of tasks; ``up`` prints the log's warnings.

    Example:
        ``FailureLog().note(task_id=7, reason="no result within learner.task_timeout_s = 600.0 s")``
    """

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def note(self, task_id: int, reason: str) -> None:
        """Log a failed task, unless a task has failed for the same reason before."""
        kind = re.sub(r"\d+", "#", reason)
        if kind in self._kinds or len(self._kinds) == _MAX_KINDS:
            return
        self._kinds.add(kind)
        log.warning("task %d failed, the first for this reason: %s", task_id, reason)
        if len(self._kinds) == _MAX_KINDS:
            log.warning("%d reasons of failures are logged; the journal has all", _MAX_KINDS)
