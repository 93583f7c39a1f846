"""What rollout and reward replicas both tell Prometheus: versions, weights, calls, queue work.

Each class is one collector over one component, so that a service standing alone, which has neither a
queue nor a receiver, shows what it has.
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
    """What is served, whether it is ready, and its gRPC calls.

    ``manifests`` tells what is served by model; ``is_ready`` what ``/readyz`` says.

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
        """The families, with the numbers of this moment."""
        served = self._manifests()
        versions = {model: manifest.version for model, manifest in served.items()}
        epochs = {model: manifest.epoch for model, manifest in served.items()}
        yield gauge("forethought_ready", "1 where /readyz answers 200", float(self._is_ready()))
        yield gauge("forethought_served_version", "Version served", versions, ("model",))
        yield gauge("forethought_served_epoch", "Epoch of what is served", epochs, ("model",))
        yield histogram(
            "forethought_grpc_request_seconds",
            "gRPC calls with one answer, from arrival to answer",
            self._calls.seconds,
            ("service", "method", "code"),
        )


class WeightMetrics(Collector):
    """The weights that a receiver applied.

    Example:
        ``WeightMetrics(registry, receiver)``
    """

    def __init__(self, registry: CollectorRegistry, receiver: WeightReceiver) -> None:
        self._receiver = receiver
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families, with the numbers of this moment."""
        applied = self._receiver.applied
        yield histogram(
            "forethought_weights_apply_seconds",
            "Flips to verified weights, without the transfer",
            {(model,): of_model.seconds for model, of_model in applied.items()},
            ("model",),
        )
        yield counter(
            "forethought_weights_applied_bytes_total",
            "Bytes of the weights that were applied",
            {model: of_model.num_bytes for model, of_model in applied.items()},
            ("model",),
        )


class WorkerMetrics(Collector):
    """The queue's end of a replica.

    Example:
        ``WorkerMetrics(registry, worker)``
    """

    def __init__(self, registry: CollectorRegistry, worker: Worker) -> None:
        self._worker = worker
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families, with the numbers of this moment."""
        worker, counts = self._worker, self._worker.counts
        yield counter("forethought_worker_deliveries_total", "Tasks received", counts.deliveries)
        yield counter(
            "forethought_worker_redeliveries_total",
            "Tasks received that an earlier attempt did not finish",
            counts.redeliveries,
        )
        yield counter(
            "forethought_worker_tasks_total",
            f"Tasks that left, by outcome: {', '.join(DeliveryOutcome)}",
            counts.outcomes,
            ("outcome",),
        )
        yield counter(
            "forethought_worker_dead_letters_total",
            "Dead letters written, those of tasks past their attempts included",
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
            "Batches of tasks, from their first token to their published results",
            counts.batch_seconds,
        )
        yield gauge("forethought_worker_held_tasks", "Tasks on loan here", worker.num_held)
