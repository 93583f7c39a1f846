"""The learner's Prometheus metrics.

Design: each collector reads the values of one part of the run at scrape time. A step's values are those of
``metrics.jsonl``, renamed to Prometheus conventions; a replica's series exist while it is registered, so
that series of dead replicas do not pile up. The price of reading on demand is that anything between two
scrapes shows in sums and histograms only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from forethought.telemetry.metrics import counter, gauge, histogram
from trainer.admission.work_in_flight import WorkInFlight
from trainer.metrics.depth_watch import DepthWatch
from trainer.metrics.step_counts import StepCounts, TaskCounts
from trainer.publisher import Publisher
from trainer.replay.replica_checks import ReplicaChecks

_NEWEST_STEP_GAUGES = {
    "lag_mean": ("policy_lag_steps", "Policy versions between sampling and training"),
    "reward_mean": ("reward_mean", "Mean reward of a thought"),
    "information_gain": (
        "information_gain_nats",
        "Mean of log p(target | thought) - log p of the baseline",
    ),
    "thought_tokens_mean": ("thought_tokens_mean", "Mean tokens of a thought"),
    "failed_share": ("failed_ratio", "Share of the batch's tasks that failed"),
    "unlearned_batches": ("unlearned_batches", "Batches since the last that was learned from"),
    "truncated_share": ("truncated_ratio", "Share of thoughts that hit their token budget"),
    "clipped_share": ("clipped_ratio", "Share of thought tokens whose ratio was clipped"),
    "loss": ("loss", "Loss"),
    "grad_norm": ("gradient_norm", "Norm of the gradient before clipping"),
    "learning_rate": ("learning_rate", "Learning rate"),
}
"""The gauge's name and help, by the key in ``metrics.jsonl``."""


class StepMetrics(Collector):
    """The run's progress, its newest step, and step durations.

    ``progress`` returns the current epoch, step and version.

    Example:
        ``StepMetrics(registry, counts, run.describe)``
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        counts: StepCounts,
        progress: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._counts, self._progress = counts, progress
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metric families with their current values."""
        counts, progress = self._counts, self._progress()
        yield gauge("forethought_learner_epoch", "Epoch of this learner", progress["epoch"])
        yield gauge("forethought_learner_step", "Batches closed in the whole run", progress["step"])
        yield gauge("forethought_learner_policy_version", "Newest version", progress["version"])
        for key, (name, text) in _NEWEST_STEP_GAUGES.items():
            value = counts.newest.get(key, math.nan) if counts.newest else None
            yield gauge(f"forethought_learner_{name}", f"{text}, newest step", value)
        yield gauge(
            "forethought_learner_last_step_timestamp_seconds",
            "Time the newest step closed; before the first step, the process's start time",
            counts.closed_unix_s,
        )
        yield histogram(
            "forethought_learner_step_seconds",
            "Duration of a step, from one closed batch to the next",
            counts.step_seconds,
        )
        yield histogram(
            "forethought_learner_phase_seconds",
            "Duration of the phases of a step",
            {(phase,): seconds for phase, seconds in counts.phase_seconds.items()},
            ("phase",),
        )
        yield counter(
            "forethought_learner_skipped_steps_total", "Steps without an update", counts.num_skipped
        )
        yield counter(
            "forethought_learner_skipped_passes_total",
            "Optimizer passes with a non-finite loss or gradient",
            counts.num_skipped_passes,
        )
        yield counter("forethought_learner_tokens_total", "Tokens trained on", counts.num_tokens)


class TaskMetrics(Collector):
    """Tasks in flight, outcomes of closed tasks, and stream depths.

    Example:
        ``TaskMetrics(registry, counts, work, depths)``
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        counts: TaskCounts,
        work: WorkInFlight,
        depths: DepthWatch,
    ) -> None:
        self._counts, self._work, self._watch = counts, work, depths
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metric families with their current values."""
        yield gauge(
            "forethought_learner_tasks_outstanding",
            "Tasks admitted and not yet trained on",
            self._work.num_outstanding,
        )
        for name, (text, value) in self._totals().items():
            yield counter(f"forethought_learner_{name}_total", text, value)
        depths = {stage.value: depth for stage, depth in self._watch.depths.items()}
        yield gauge(
            "forethought_stream_lag_tasks",
            "Tasks waiting for a consumer",
            {stage: depth.waiting for stage, depth in depths.items()},
            ("stage",),
        )
        yield gauge(
            "forethought_stream_pending_tasks",
            "Tasks leased to a consumer",
            {stage: depth.pending for stage, depth in depths.items()},
            ("stage",),
        )
        yield gauge(
            "forethought_stream_seen_timestamp_seconds",
            "When lag and pending were last read from Redis",
            self._watch.seen_unix_s,
        )

    def _totals(self) -> dict[str, tuple[str, int]]:
        counts, work = self._counts, self._work
        return {
            "tasks_admitted": ("Tasks admitted, checkpointed ones again", work.num_put),
            "tasks_trained": ("Tasks trained on", counts.num_trained),
            "tasks_failed": ("Tasks closed with an error", counts.num_failed),
            "tasks_expired": ("Tasks failed because no result arrived in time", work.num_expired),
            "tasks_lost": ("Tasks missing from their closed batch", counts.num_lost),
            "tasks_duplicated": ("Duplicate tasks in a closed batch", counts.num_duplicated),
            "results_ignored": ("Duplicate, late or stale results", work.num_ignored),
            "positions_unpredictable": (
                "Positions left out because their target cannot be predicted",
                work.num_unpredictable,
            ),
            "results_refused": ("Results that did not fit their tasks", work.num_refused),
        }


class PushMetrics(Collector):
    """Replicas and the weight pushes to them.

    Example:
        ``PushMetrics(registry, publisher)``
    """

    def __init__(self, registry: CollectorRegistry, publisher: Publisher) -> None:
        self._publisher = publisher
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metric families with their current values."""
        pushes, of_push = self._publisher.pushes(), ("replica", "model")
        yield gauge(
            "forethought_replicas",
            "Registered replicas by state: current, behind, failing, quarantined, draining",
            self._publisher.num_replicas(),
            ("kind", "state"),
        )
        yield gauge(
            "forethought_replica_lag_versions",
            "Versions the replica is behind the newest",
            self._publisher.lags(),
            of_push,
        )
        yield histogram(
            "forethought_push_seconds",
            "Duration of applied weight pushes",
            {key: push.seconds for key, push in pushes.items()},
            of_push,
        )
        yield counter(
            "forethought_push_bytes_total",
            "Bytes of applied weight pushes",
            {key: push.num_bytes for key, push in pushes.items()},
            of_push,
        )
        yield counter(
            "forethought_push_failures_total",
            "Failed attempts to bring a replica up to date",
            {key: push.num_failures for key, push in pushes.items()},
            of_push,
        )


class ReplayMetrics(Collector):
    """The comparison of rollout replicas with the learner.

    Example:
        ``ReplayMetrics(registry, checks)``
    """

    def __init__(self, registry: CollectorRegistry, checks: ReplicaChecks) -> None:
        self._checks = checks
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metric families with their current values."""
        yield gauge(
            "forethought_replay_difference_nats",
            "Mean difference per token between the replica's log-probs and the learner's, newest check",
            self._checks.differences(),
            ("replica",),
        )
        yield gauge(
            "forethought_replay_unchecked_replicas",
            "Rollout replicas of the newest batch that have not been compared yet",
            self._checks.num_unchecked,
        )
