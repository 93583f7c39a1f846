"""Prometheus metrics shared by rollout and reward replicas: versions, weights, calls, queue work.

Each class is one collector for one component, so that a standalone service, which has neither a queue
nor a receiver, exports only the metrics it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from forethought.replica.worker import Worker
from forethought.replica.worker_counts import DeliveryOutcome
from forethought.rpc.calls import GrpcCalls
from forethought.telemetry.metrics import counter, gauge, histogram
from forethought.types import WeightManifest
from forethought.weights.receiver import WeightReceiver

Manifests = Callable[[], Mapping[str, WeightManifest]]


class ServedMetrics(Collector):
    """Served versions, readiness, and gRPC calls.

    ``manifests`` returns the served manifest of each model; ``is_ready`` is what ``/readyz`` reports.

    Example:
        ``ServedMetrics(registry, lambda: receiver.holding, lambda: host.is_ready, calls)``
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        manifests: Manifests,
        is_ready: Callable[[], bool],
        calls: GrpcCalls,
    ) -> None:
        self._manifests, self._is_ready, self._calls = manifests, is_ready, calls
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families with their current values."""
        served = self._manifests()
        versions = {model: manifest.version for model, manifest in served.items()}
        epochs = {model: manifest.epoch for model, manifest in served.items()}
        yield gauge("forethought_ready", "1 if /readyz returns 200", float(self._is_ready()))
        yield gauge(
            "forethought_served_version", "Version of the served weights", versions, ("model",)
        )
        yield gauge(
            "forethought_served_epoch", "Run epoch of the served weights", epochs, ("model",)
        )
        yield histogram(
            "forethought_grpc_request_seconds",
            "Duration of gRPC calls with a single response, from arrival to response",
            self._calls.seconds,
            ("service", "method", "code"),
        )


class WeightMetrics(Collector):
    """The weights applied by a receiver.

    Example:
        ``WeightMetrics(registry, receiver)``
    """

    def __init__(self, registry: CollectorRegistry, receiver: WeightReceiver) -> None:
        self._receiver = receiver
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families with their current values."""
        applied = self._receiver.applied
        yield histogram(
            "forethought_weights_apply_seconds",
            "Duration of switching to verified weights, without the transfer",
            {(model,): of_model.seconds for model, of_model in applied.items()},
            ("model",),
        )
        yield counter(
            "forethought_weights_applied_bytes_total",
            "Bytes of the applied weights",
            {model: of_model.num_bytes for model, of_model in applied.items()},
            ("model",),
        )


class WorkerMetrics(Collector):
    """The queue worker of a replica.

    Example:
        ``WorkerMetrics(registry, worker)``
    """

    def __init__(self, registry: CollectorRegistry, worker: Worker) -> None:
        self._worker = worker
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families with their current values."""
        worker, counts = self._worker, self._worker.counts
        yield counter("forethought_worker_deliveries_total", "Tasks received", counts.deliveries)
        yield counter(
            "forethought_worker_redeliveries_total",
            "Tasks received after an unfinished earlier attempt",
            counts.redeliveries,
        )
        yield counter(
            "forethought_worker_tasks_total",
            f"Tasks that left the worker, by outcome: {', '.join(DeliveryOutcome)}",
            counts.outcomes,
            ("outcome",),
        )
        yield counter(
            "forethought_worker_dead_letters_total",
            "Dead letters written, including those of tasks out of attempts",
            worker.num_buried,
        )
        yield counter("forethought_worker_lease_renewals_total", "Leases renewed", counts.renewals)
        yield counter(
            "forethought_worker_seconds_total",
            "Time spent receiving, waiting for newer weights, and working",
            counts.seconds,
            ("activity",),
        )
        yield histogram(
            "forethought_worker_batch_seconds",
            "Duration of task batches, from the start of work to the published results",
            counts.batch_seconds,
        )
        yield gauge("forethought_worker_held_tasks", "Tasks leased to this worker", worker.num_held)
        yield gauge(
            "forethought_worker_batch_limit_tasks", "Tasks taken at once", worker.num_to_take
        )
