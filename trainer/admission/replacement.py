"""Dynamic sampling: tasks without a learning signal are replaced in their batch (DAPO, arXiv 2503.14476).

Design: a replacement is a further task of the same batch, and its id encodes which task it replaces and
which attempt it is: attempt a of task i has id a x 2^40 + i. So ids stay unique and are known before
sampling, batch k still holds exactly tasks kN to (k+1)N-1 plus their replacements, and a learner that
resumes in the middle of a batch sees from the ids alone which tasks were replaced. The price is that a
batch waits for its slowest attempt, and that replacements take documents out of the corpus's order.

Everything stays in the batch: a replaced task is journalled together with its replacement, and the filters
that rejected it exclude it from the training batch too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forethought.types import ScoredRollout, Task, attempt_of, original_of


@dataclass(frozen=True, slots=True)
class Replacing:
    """Which tasks of a batch are replaced, and under which epoch and version.

    Example:
        ``Replacing(builder.keeps, max_rounds=4, epoch=1, version=500).wasted(results)``
    """

    keeps: Callable[[ScoredRollout], bool]
    max_rounds: int
    epoch: int
    version: int

    def wasted(self, results: Sequence[ScoredRollout]) -> list[Task]:
        """The newest attempts that succeeded, were filtered out, and have attempts left: to be replaced.

        A failed task is not replaced: its replacement would be as likely to fail.
        """
        newest = {
            original_of(result.rollout.task.task_id): result
            for result in sorted(results, key=lambda result: result.rollout.task.task_id)
        }
        return [
            result.rollout.task
            for result in newest.values()
            if attempt_of(result.rollout.task.task_id) < self.max_rounds
            and result.failure is None
            and not self.keeps(result)
        ]
