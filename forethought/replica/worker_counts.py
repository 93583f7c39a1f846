"""What a worker counts while it works; plain numbers, since its registry is not the queue's affair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter

from forethought.telemetry.distribution import WORK_BOUNDS_S, Distribution


class DeliveryOutcome(StrEnum):
    """How a delivery left the worker."""

    DONE = "done"
    """Its result was published."""

    FAILED = "failed"
    """An error result was published."""

    BURIED = "buried"
    """It became a dead letter."""

    DISCARDED = "discarded"
    """It was of a dead epoch."""

    RELEASED = "released"
    """It went back in line."""

    LOST = "lost"
    """Its lease ran out here, or another consumer retired it first."""


ANSWERED = (DeliveryOutcome.DONE, DeliveryOutcome.FAILED, DeliveryOutcome.BURIED)
"""The outcomes by which whoever waits for a task learns what became of it."""


class Activity(StrEnum):
    """What a worker spends its time on."""

    RECEIVING = "receiving"
    WAITING = "waiting"
    """For newer weights."""

    WORKING = "working"


@dataclass(slots=True)
class WorkerCounts:
    """Since the worker was made. ``batch_seconds`` is of whole batches, publishing included.

    Example:
        ``worker.counts.outcomes[DeliveryOutcome.DONE]``
    """

    deliveries: int = 0
    redeliveries: int = 0
    renewals: int = 0
    outcomes: Counter[DeliveryOutcome] = field(
        default_factory=lambda: Counter(dict.fromkeys(DeliveryOutcome, 0))
    )
    seconds: dict[Activity, float] = field(default_factory=lambda: dict.fromkeys(Activity, 0.0))
    batch_seconds: Distribution = field(default_factory=lambda: Distribution(WORK_BOUNDS_S))

    @contextmanager
    def spending(self, activity: Activity) -> Iterator[None]:
        """Add the time of a block to an activity, however the block ends."""
        started_s = perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += perf_counter() - started_s
