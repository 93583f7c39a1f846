"""The worker's counters, as plain numbers: the worker does not depend on Prometheus."""

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
    """It was dead-lettered."""

    DISCARDED = "discarded"
    """Its result was no longer needed: its batch was closed, or its epoch superseded."""

    RELEASED = "released"
    """It was returned to the queue."""

    LOST = "lost"
    """Its lease expired, or another consumer retired it first."""


ANSWERED = (DeliveryOutcome.DONE, DeliveryOutcome.FAILED, DeliveryOutcome.BURIED)
"""The outcomes that publish a result or an error result for the task."""


class Activity(StrEnum):
    """The activities a worker's time is attributed to."""

    RECEIVING = "receiving"
    WAITING = "waiting"
    """For newer weights."""

    WORKING = "working"


@dataclass(slots=True)
class WorkerCounts:
    """Totals since the worker was created. ``batch_seconds`` covers whole batches, including publishing.

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
        """Add the duration of a block to an activity, even if it raises."""
        started_s = perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += perf_counter() - started_s
