"""The ledger: which tasks are outstanding, and which results count.

Redis delivers at least once and may lose everything; this in-memory set, in the one process that
checkpoints, is authoritative. A result counts iff its (epoch, id) is outstanding, and only once.

Design: results wait here per batch until the batch is complete or its deadline passes; a missing result
then *becomes* an error result, so every admitted task comes back exactly once.

A batch's clock starts when its work can: when the learner begins to wait for it, so that all earlier
batches are closed and workers drop their tasks. Each batch then has ``task_timeout_s`` of the
replicas to itself. A clock from admission on would also run while earlier batches are worked on: one late
batch then makes every later one late, however fast the replicas are. Replacements are admitted
behind the tasks of later batches; their clock runs longer by the share of a batch that is ahead of them.
Nor does a clock run while the weights that a batch needs are being pushed: a push longer than the timeout
would fail every batch, and each failed batch begins another push. The price: a run without replicas closes
a batch per ``task_timeout_s``, not several at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from forethought.background import wait_for_event
from forethought.types import Rollout, ScoredRollout, Task, attempt_of
from trainer.admission.failure_log import FailureLog

_CHECK_S = 0.5  # how often a push is looked at while a batch is waited for


class Pushes(Protocol):
    """What the ledger asks of the publisher."""

    @property
    def longest_push_s(self) -> float:
        """After that, a push has failed."""
        ...

    def is_on_its_way(self, version: int) -> bool:
        """Whether a policy version is served by no replica of some kind, and is being pushed to one."""
        ...


class Ledger:
    """Outstanding tasks and the results received for them.

    Without ``pushes``, clocks never wait for weights.
    """

    def __init__(self, task_timeout_s: float, pushes: Pushes | None = None) -> None:
        self._task_timeout_s, self._pushes = task_timeout_s, pushes
        self._outstanding: dict[int, Task] = {}
        self._deadlines_s: dict[int, float] = {}  # by batch; of those waited for
        self._awaited_since_s: dict[int, float] = {}  # by batch, likewise
        self._results: dict[int, ScoredRollout] = {}
        self._arrived = asyncio.Event()
        self._failures = FailureLog()
        self.num_ignored = 0
        self.num_admitted = 0
        self.num_expired = 0

    @property
    def outstanding(self) -> list[Task]:
        """Every task whose result has not been consumed by :meth:`close_batch`, in id order.

        This includes tasks whose result has arrived but was not trained on: a crash would lose it.
        """
        pending = self._outstanding | {i: r.rollout.task for i, r in self._results.items()}
        return [pending[task_id] for task_id in sorted(pending)]

    @property
    def unanswered(self) -> list[Task]:
        """Every task without a result, in id order: re-admitted if Redis lost data."""
        return [self._outstanding[task_id] for task_id in sorted(self._outstanding)]

    @property
    def num_outstanding(self) -> int:
        """The number of :attr:`outstanding` tasks."""
        return len(self._outstanding) + len(self._results)

    def admit(self, tasks: Iterable[Task]) -> None:
        """Make tasks outstanding. For replacements, the clock of their batch starts again."""
        tasks = list(tasks)
        for batch in {task.batch for task in tasks} & self._deadlines_s.keys():
            self._start_clock(batch)
        self.num_admitted += len(tasks)
        self._outstanding |= {task.task_id: task for task in tasks}

    def restart_clocks(self) -> None:
        """Start running clocks again: their work was lost, or its results cannot arrive."""
        for batch in self._deadlines_s:
            self._start_clock(batch)

    def awaiting(self, task_id: int, epoch: int) -> Task | None:
        """The outstanding task that a result of this id and epoch answers.

        None, counted as an ignored result: a duplicate, of a closed batch, or of another epoch.
        """
        mine = self._outstanding.get(task_id)
        if mine is None or mine.epoch != epoch:
            self.num_ignored += 1
            return None
        return mine

    def accept(self, scored: ScoredRollout) -> bool:
        """Accept a result, which holds the admitted task, iff that is still awaiting one."""
        task = scored.rollout.task
        if self.awaiting(task.task_id, task.epoch) is None:
            return False
        del self._outstanding[task.task_id]
        self._results[task.task_id] = scored
        if scored.failure is not None:
            self._failures.note(task.task_id, scored.failure)
        self._arrived.set()
        return True

    async def complete_batch(self, batch: int) -> list[ScoredRollout]:
        """Wait until every task of ``batch`` has a result or is past its deadline.

        Returns the results in id order; the tasks stay outstanding until :meth:`close_batch`.
        """
        if batch not in self._deadlines_s:
            self._awaited_since_s[batch] = _now_s()
            self._start_clock(batch)
        while missing := [t for t in self._outstanding.values() if t.batch == batch]:
            if self._waits_for_weights(batch, min(task.min_version for task in missing)):
                self._start_clock(batch)
            remaining_s = self._deadlines_s[batch] - _now_s()
            if remaining_s <= 0:
                self._expire(missing)
                break
            await self._arrival(min(remaining_s, _CHECK_S))
        return [self._results[task_id] for task_id in self._of_batch(batch)]

    async def close_batch(self, batch: int) -> list[ScoredRollout]:
        """As :meth:`complete_batch`, then remove the batch from the ledger."""
        await self.complete_batch(batch)
        del self._deadlines_s[batch], self._awaited_since_s[batch]
        return [self._results.pop(task_id) for task_id in self._of_batch(batch)]

    def _start_clock(self, batch: int) -> None:
        timeout_s = self._task_timeout_s * (1 + self._batches_ahead_of(batch))
        self._deadlines_s[batch] = _now_s() + timeout_s

    def _waits_for_weights(self, batch: int, version: int) -> bool:
        """Whether its clock need not run yet: for the time of one push, because pushes may keep failing."""
        if self._pushes is None:
            return False
        awaited_s = _now_s() - self._awaited_since_s[batch]
        return awaited_s < self._pushes.longest_push_s and self._pushes.is_on_its_way(version)

    def _batches_ahead_of(self, batch: int) -> float:
        """How much of a batch is queued ahead of this one's replacements: 0 if it has none unanswered."""
        unanswered = self._outstanding.values()
        if not any(task.batch == batch and attempt_of(task.task_id) for task in unanswered):
            return 0.0
        num_originals = sum(
            t.batch == batch and not attempt_of(t.task_id) for t in self.outstanding
        )
        return sum(task.batch > batch for task in unanswered) / max(1, num_originals)

    def _of_batch(self, batch: int) -> list[int]:
        return sorted(i for i, r in self._results.items() if r.rollout.task.batch == batch)

    async def _arrival(self, timeout_s: float) -> None:
        self._arrived.clear()
        await wait_for_event(self._arrived, timeout_s)  # the caller re-checks the deadlines

    def _expire(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self.num_expired += 1
            reason = f"no result within learner.task_timeout_s = {self._task_timeout_s} s"
            self.accept(ScoredRollout(Rollout(task, error=reason)))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
