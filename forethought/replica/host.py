"""The host of a replica's worker: registration, weight pushes, health checks, draining.

Design: a replica is given only a Redis URL and a run. It registers before it has weights, because the
learner pushes weights to registered replicas. A registration expires after a few heartbeats, so a killed
replica disappears by itself. The price is that for those few seconds a dead replica is still listed.

    loop         consumes             produces              waits for          unblocked by
    _heartbeat   receiver.holding,    the registration,     heartbeat_s        new weights, the clock
                 the run's manifest   the worker's pause
    worker.run   its stage            the next stage        see Worker         see Worker
    run          stop                 draining, withdrawal  stop or a failure  SIGTERM
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from forethought.auth.guard import Guard, is_loopback
from forethought.background import Outage, end, first_failure
from forethought.config.sections import ReplicaSection, RewardSection, RolloutSection
from forethought.errors import InvalidInput, Unreachable
from forethought.queue.interface import Broker, ConsumerOptions, ErrorResult, Stage
from forethought.replica.handler import Handler
from forethought.replica.metrics import ServedMetrics, WeightMetrics, WorkerMetrics
from forethought.replica.progress import Progress
from forethought.replica.worker import Worker
from forethought.rpc.calls import GrpcCalls
from forethought.rpc.guard import GrpcGuard
from forethought.rpc.server import Servicer, start_grpc_server
from forethought.scratch import ScratchFolder
from forethought.telemetry.ops import OpsServer
from forethought.types import Replica, WeightManifest
from forethought.weights.grpc_weights import WeightsServicer
from forethought.weights.receiver import WeightReceiver

log = logging.getLogger(__name__)

_TTL_HEARTBEATS = 5
_PATIENT_HEARTBEATS = 10  # without weights, before the log says what is waited for


def new_replica_id(kind: str) -> str:
    """A unique replica id: kind, host and six random hex digits."""
    return f"{kind}-{socket.gethostname().split('.')[0]}-{secrets.token_hex(3)}"


class ReplicaHost:
    """Hosts one worker for the lifetime of the process.

    ``servicers`` are served over gRPC in addition to weights, health and reflection, all of it behind
    ``guard``. The host's metrics are added to ``registry``, which the ops port exports.
    """

    def __init__(
        self,
        kind: str,
        replica_id: str,
        section: ReplicaSection,
        redis_url: str,
        broker: Broker,
        models: frozenset[str],
        apply: Callable[[WeightManifest, Path], Awaitable[None]],
        guard: Guard,
        registry: CollectorRegistry,
        servicers: Sequence[Servicer] = (),
    ) -> None:
        self.replica_id = replica_id
        self._kind, self._section, self._broker, self._models = kind, section, broker, models
        self._servicers, self._guard = servicers, guard
        self._registry, self._calls = registry, GrpcCalls()
        self._advertised = section.advertise_host or address_towards(redis_url)
        self._host = section.host or listening_host(self._advertised)
        self._staging = ScratchFolder(_staging_place(), "weights")
        self.receiver = WeightReceiver(
            replica_id, models, self._staging.path, apply, owner=self._owner
        )
        self._address = ""
        self._is_draining = False
        self._quarantine = ""  # the learner's reason

    @property
    def is_ready(self) -> bool:
        """True while a verified policy is being served and the replica is not draining."""
        return "policy" in self.receiver.holding and not self._is_draining

    async def run(self, worker: Worker, stop: asyncio.Event) -> None:
        """Serve until ``stop``, then drain: finish the current batch, release the rest, deregister."""
        self._guard.warn_if_exposed(self._host, "gRPC")
        grpc_server = await start_grpc_server(
            [WeightsServicer(self.receiver), *self._servicers],
            self._host,
            self._section.grpc_port,
            interceptors=[self._calls, GrpcGuard(self._guard)],
            max_message_bytes=self._section.max_message_bytes,
            max_concurrent_calls=self._section.max_concurrent_calls,
        )
        self._address = f"{self._advertised}:{grpc_server.port}"
        ops = self._ops_server(worker)
        await ops.start()
        log.info("%s: gRPC on %s, ops port %d", self.replica_id, self._address, ops.port)
        heartbeat = asyncio.create_task(self._heartbeat(worker, grpc_server.set_ready))
        working = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(_until(stop))
        try:
            await first_failure((heartbeat, working), main=stopping)
            await self._drain(worker, working)
        finally:
            await end((heartbeat, working, stopping))
            await self._withdraw()
            await grpc_server.stop()
            await ops.stop()
            self.receiver.close()
            self._staging.close()

    def describe(self) -> dict[str, object]:
        """The served versions, for the ops port."""
        serving = {model: m.order for model, m in self.receiver.holding.items()}
        return {
            "replica": self.replica_id,
            "run_id": self._run_id(),
            "serving": serving,
            "draining": self._is_draining,
            "quarantine": self._quarantine,
        }

    def _run_id(self) -> str:
        """The run of the served policy; empty before the first weights."""
        policy = self.receiver.holding.get("policy")
        return policy.run_id if policy else ""

    async def _owner(self) -> tuple[str, int] | None:
        """The run and epoch that own the Redis of this replica; None while its learner has not said so."""
        manifest = await self._broker.run() or {}
        run_id, epoch = manifest.get("run_id"), manifest.get("epoch")
        if epoch != await self._broker.current_epoch():  # written by a learner since superseded
            return None
        return (run_id, epoch) if isinstance(run_id, str) and isinstance(epoch, int) else None

    async def _drain(self, worker: Worker, working: asyncio.Task[None]) -> None:
        self._is_draining = True
        worker.stop()
        log.info("draining for at most %.0f s", self._section.drain_s)
        await asyncio.wait((working,), timeout=self._section.drain_s)

    async def _heartbeat(
        self, worker: Worker, set_ready: Callable[[bool], Awaitable[None]]
    ) -> None:
        outage, num_waiting = Outage(), 0
        while True:
            await set_ready(self.is_ready)
            num_waiting = 0 if self.receiver.holding else num_waiting + 1
            if num_waiting == _PATIENT_HEARTBEATS:
                self._note_waiting()
            try:
                await self._announce(worker.num_done)
                await self._read_quarantine()
                worker.quarantine(bool(self._quarantine))
                outage.end()
            except Unreachable as error:
                outage.note(error)  # the next heartbeat is the next attempt
            try:
                async with asyncio.timeout(self._section.heartbeat_s):
                    await self.receiver.wait_for_change()
            except TimeoutError:
                continue  # nothing changed: an ordinary heartbeat

    async def _read_quarantine(self) -> None:
        """What the learner of the run says of this replica; a later learner checks it anew."""
        quarantined = (await self._broker.run() or {}).get("quarantined")
        before = self._quarantine
        self._quarantine = str(
            (quarantined if isinstance(quarantined, dict) else {}).get(self.replica_id, "")
        )
        if self._quarantine and not before:
            log.warning("%s; it takes no tasks until it is restarted", self._quarantine)

    def _note_waiting(self) -> None:
        log.info(
            "no weights yet: this replica waits for the learner of %s; if its learner has another run or "
            "Redis, give that as --run and --redis-url",
            self._broker.place,
        )

    async def _announce(self, num_tasks_done: int) -> None:
        replica = Replica(
            self.replica_id,
            self._kind,
            self._address,
            tuple(sorted(self._models)),
            {model: m.order for model, m in self.receiver.holding.items()},
            num_tasks_done,
            self._is_draining,
            self._run_id(),
        )
        await self._broker.announce(replica, ttl_s=_TTL_HEARTBEATS * self._section.heartbeat_s)

    async def _withdraw(self) -> None:
        try:
            await self._broker.withdraw(self.replica_id)
        except Unreachable as error:
            log.warning("could not deregister: %s; the registration will expire", error)

    def _ops_server(self, worker: Worker) -> OpsServer:
        registry, receiver = self._registry, self.receiver
        ServedMetrics(registry, lambda: receiver.holding, lambda: self.is_ready, self._calls)
        WeightMetrics(registry, receiver)
        WorkerMetrics(registry, worker)
        return OpsServer(
            self._host, self._section.ops_port, lambda: self.is_ready, self.describe, registry
        )


def make_worker(
    handler: Handler,
    broker: Broker,
    section: RolloutSection | RewardSection,
    *,
    name: str,
    stage: Stage,
    result_stage: Stage,
    error_result: ErrorResult,
    progress: Progress,
) -> Worker:
    """A worker of one stage with the settings of its replica; ``name`` is the replica's id."""
    options = ConsumerOptions(
        stage=stage,
        result_stage=result_stage,
        name=name,
        lease_s=section.lease_s,
        max_attempts=section.max_attempts,
        error_result=error_result,
    )
    return Worker(
        handler,
        consumer=broker.consumer(options),
        max_batch_tasks=section.max_batch_tasks,
        progress=progress,
        hang_timeout_s=section.hang_timeout_s,
    )


def address_towards(redis_url: str) -> str:
    """This machine's address on the route to Redis, which the learner can therefore connect to.

    Raises:
        InvalidInput: the URL's host does not resolve.
    """
    parts = urlsplit(redis_url)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname or "127.0.0.1", parts.port or 6379))
            return str(probe.getsockname()[0])  # connecting a datagram socket sends nothing
    except OSError as error:
        raise InvalidInput(
            f"cannot determine this machine's address: host {parts.hostname!r} of redis.url does not "
            f"resolve ({error}); correct it or set advertise_host"
        ) from error


def listening_host(advertised: str) -> str:
    """Loopback if the advertised address is loopback, else every interface."""
    return "127.0.0.1" if is_loopback(advertised) else "0.0.0.0"


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _staging_place() -> Path:
    """Where pushes are staged: shared memory if available, else the temporary folder."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())
