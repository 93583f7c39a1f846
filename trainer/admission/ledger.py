"""The ledger: which tasks are outstanding, and which results count.

Redis delivers at least once and may lose everything; this in-memory set, in the one process that
checkpoints, is authoritative. A result counts iff its (epoch, id) is outstanding, and only once.

Design: results wait here per batch until the batch is complete or its deadline passes; a missing result
then *becomes* an error result, so every admitted task comes back exactly once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from forethought.background import wait_for_event
from forethought.types import Rollout, ScoredRollout, Task


class Ledger:
    """Outstanding tasks and the results received for them."""

    def __init__(self, task_timeout_s: float) -> None:
        self._task_timeout_s = task_timeout_s
        self._outstanding: dict[int, Task] = {}
        self._deadlines_s: dict[int, float] = {}
        self._results: dict[int, ScoredRollout] = {}
        self._arrived = asyncio.Event()
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
        """Make tasks outstanding; their deadlines start now."""
        deadline_s = time.monotonic() + self._task_timeout_s
        for task in tasks:
            self.num_admitted += 1
            self._outstanding[task.task_id] = task
            self._deadlines_s[task.task_id] = deadline_s

    def accept(self, scored: ScoredRollout) -> bool:
        """Accept a result iff its task is outstanding; ignores duplicates and other epochs."""
        task = scored.rollout.task
        mine = self._outstanding.get(task.task_id)
        if mine is None or mine.epoch != task.epoch:
            self.num_ignored += 1
            return False
        del self._outstanding[task.task_id]
        self._results[task.task_id] = scored
        self._arrived.set()
        return True

    async def complete_batch(self, batch: int) -> list[ScoredRollout]:
        """Wait until every task of ``batch`` has a result or is past its deadline.

        Returns the results in id order; the tasks stay outstanding until :meth:`close_batch`.
        """
        while missing := [t for t in self._outstanding.values() if t.batch == batch]:
            now_s = time.monotonic()
            remaining_s = max(self._deadlines_s[task.task_id] for task in missing) - now_s
            if remaining_s <= 0:
                self._expire(missing)
                break
            await self._arrival(remaining_s)
        return [self._results[task_id] for task_id in self._of_batch(batch)]

    async def close_batch(self, batch: int) -> list[ScoredRollout]:
        """As :meth:`complete_batch`, then remove the batch from the ledger."""
        await self.complete_batch(batch)
        mine = self._of_batch(batch)
        for task_id in mine:
            del self._deadlines_s[task_id]
        return [self._results.pop(task_id) for task_id in mine]

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
