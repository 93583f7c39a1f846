"""Counters of the learner's steps and tasks, for its ops port.

Design: a step's values are those of ``metrics.jsonl``, so the two never disagree; this module keeps the
newest step's, and sums where a sum is more useful. Counters start at 0 with the process, as rates over them
require, not at a checkpoint's totals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from forethought.telemetry.distribution import WORK_BOUNDS_S, Distribution
from forethought.types import ScoredRollout

PHASES = ("wait", "learn", "publish", "admit", "journal", "checkpoint")
"""The phases of a step, in order."""


class StepCounts:
    """The steps since this process started.

    Example:
        ``with counts.phase("learn"): learner.step(trees)``
    """

    def __init__(self) -> None:
        self._started_s = time.perf_counter()  # of the current step
        self.newest: Mapping[str, Any] = {}
        self.newest_phase_s: dict[str, float] = {}
        self.closed_unix_s = time.time()  # of the newest step; before the first, the start time
        self.step_seconds = Distribution(WORK_BOUNDS_S)
        self.phase_seconds = {phase: Distribution(WORK_BOUNDS_S) for phase in PHASES}
        self.num_skipped = 0
        self.num_skipped_passes = 0
        self.num_tokens = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase, unless the block raises."""
        started_s = time.perf_counter()
        yield
        self.newest_phase_s[name] = time.perf_counter() - started_s
        self.phase_seconds[name].add(self.newest_phase_s[name])

    def close(self, values: Mapping[str, Any], num_tokens: int) -> None:
        """Count a step: its line of ``metrics.jsonl`` and the tokens it trained on."""
        self.num_skipped += values["skipped"]
        self.num_skipped_passes += values.get("skipped_passes", 0)
        self.num_tokens += num_tokens
        self.newest, self.closed_unix_s = values, time.time()
        now_s = time.perf_counter()
        self.step_seconds.add(now_s - self._started_s)
        self._started_s = now_s


class TaskCounts:
    """Task outcomes since this process started.

    ``num_lost`` and ``num_duplicated`` compare every closed batch with the ids it must contain,
    independently of the ledger: both stay 0.

    Example:
        ``counts = TaskCounts(batch_tasks=8); counts.close(batch=0, results=results)``
    """

    def __init__(self, batch_tasks: int) -> None:
        self._batch_tasks = batch_tasks
        self.num_trained = 0
        self.num_failed = 0
        self.num_lost = 0
        self.num_duplicated = 0

    def close(self, batch: int, results: Sequence[ScoredRollout]) -> None:
        """Count a closed batch."""
        first_id = batch * self._batch_tasks
        ids = [result.rollout.task.task_id for result in results]
        num_failed = sum(result.failure is not None for result in results)
        self.num_failed += num_failed
        self.num_trained += len(results) - num_failed
        self.num_lost += len(set(range(first_id, first_id + self._batch_tasks)).difference(ids))
        self.num_duplicated += len(ids) - len(set(ids))
