"""What a run's steps say about it: alarms, batches without learning, and the end of a run without any.

Design: the rules are those of :mod:`forethought.run`, on the lines of ``metrics.jsonl``; this module logs
what they find, and ``up`` prints the log's warnings. The price: a rule knows no more than such a line does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from forethought.config.sections import LearnerSection
from forethought.run.alarms import Alarms
from forethought.run.learning import LearningWatch

log = logging.getLogger(__name__)


class StepWatch:
    """Follows the steps of a run of any kind.

    Example:
        ``watch = StepWatch(settings.learner); watch.resume(directory.read_metrics())``
    """

    def __init__(self, section: LearnerSection) -> None:
        self._alarms = Alarms()
        self._learning = LearningWatch(section.max_failed_batches, section.max_unlearned_batches)

    def resume(self, earlier: Iterable[Mapping[str, Any]], is_done: bool) -> None:
        """Follow the steps of earlier learners without logging: they were logged when they happened.

        ``is_done``: no step remains, so that the run ends as its last learner left it.
        """
        for values in earlier:
            self._alarms.see(values)
            self._learning.see(values)
        if not is_done:
            self._learning.resume()

    def see(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Log what a new step raises for the first time; returns its values with ``unlearned_batches``."""
        for alarm in self._alarms.see(values):
            log.warning("step %d: %s", step, alarm)
        if reason := self._learning.see(values):
            log.warning("step %d: nothing was learned from its batch: %s", step, reason)
        return {**values, "unlearned_batches": self._learning.num_unlearned}

    def failure(self, is_done: bool) -> str:
        """Why the run ends without success; empty if it does not (see :class:`LearningWatch`)."""
        return self._learning.failure(is_done)
