"""Dynamic sampling: tasks that taught nothing are replaced within their batch (DAPO, arXiv 2503.14476).

Design: a replacement is a further task of the same batch, and its id says which task it stands in for and
which attempt it is: attempt a of task i has id a x 2^40 + i. So ids stay unique and known before anything
is sampled, batch k still holds exactly tasks kN to (k+1)N-1 beside its replacements, and whoever resumes in
the middle of a batch sees from the ids alone what was replaced. The price is that a batch waits for its
slowest attempt, and that replacements take documents out of the corpus's order.

Everything stays in the batch: what was replaced is journalled with what replaced it, and the filters that
found it useless leave it out of the lesson again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forethought.types import ScoredRollout, Task, attempt_of, original_of


@dataclass(frozen=True, slots=True)
class Replacing:
    """Which results of a batch are replaced, and under which epoch and version.

    Example:
        ``Replacing(builder.keeps, max_rounds=4, epoch=1, version=500).wasted(results)``
    """

    keeps: Callable[[ScoredRollout], bool]
    max_rounds: int
    epoch: int
    version: int

    def wasted(self, results: Sequence[ScoredRollout]) -> list[Task]:
        """The tasks to replace: of each the newest attempt, if it is sound, of no use, and not the last.

        A failed task is not replaced: what failed it would as likely fail its replacement.
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
