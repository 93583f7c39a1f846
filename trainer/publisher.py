"""Push the newest weights to every replica without waiting for any of them.

Design: publishing is an assignment; everything else is reconciliation. One sender per replica and
model queries the version held, pushes the newest snapshot if that is behind, and retries independently,
so joining, catching up after a crash and the ordinary push are one code path, and missed versions are
skipped. The price is one more Status call (about a millisecond) per push, and that a slow replica keeps
the snapshot it is being sent in memory in addition to the newest.

A replica that holds weights of another run, or of a later epoch, and refuses these is quarantined: reported
with the remedy, retried, and waited for by nothing. Whether it may move here is its own decision
(:mod:`forethought.weights.receiver`). One that does not compute what the learner computes
(:mod:`trainer.replay`) is quarantined too, and nothing is pushed to it any more.

    who      consumes                       produces          waits for       unblocked by
    publish  a snapshot                     newest[model]     nothing         -
    run      the registry                   senders           discover_s      publish
    sender   newest[model], Status replies  pushes, progress  its wake event  publish; a registry
                                                                              entry that is behind
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from forethought.auth import Bearer
from forethought.background import backoff, end, wait_for_event
from forethought.config.sections import PublishSection
from forethought.errors import Stale, Unreachable
from forethought.telemetry.distribution import WORK_BOUNDS_S, Distribution
from forethought.types import Replica, WeightManifest
from forethought.weights.grpc_weights import WeightsClient
from forethought.weights.snapshot import Snapshot

MAX_RETRY_S = 10.0
"""Cap on a failing sender's backoff, unless ``retry_s`` is longer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaPush:
    """The publisher's view of one replica.

    ``holding`` is (epoch, version) by model, as the replica last reported it; a model is absent
    while that is unknown, because the replica holds nothing or is unreachable. The last push
    took ``last_push_s`` seconds for ``last_push_bytes`` bytes (0 before the first). A quarantined replica
    holds another run's or a later epoch's weights and refuses newer ones.

    Example:
        ``ReplicaPush({"policy": (1, 12)}, last_push_s=0.02, last_push_bytes=430_000)``
    """

    holding: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    last_push_s: float = 0.0
    last_push_bytes: int = 0
    last_error: str | None = None
    is_quarantined: bool = False


@dataclass(slots=True)
class PushCounts:
    """Pushes of one model to one replica since it joined. A failure is a failed push or a failed Status
    call; both are retried.

    Example:
        ``publisher.pushes()["rollout-a1", "policy"].num_failures``
    """

    seconds: Distribution = field(default_factory=lambda: Distribution(WORK_BOUNDS_S))
    num_bytes: int = 0
    num_failures: int = 0


class Publisher:
    """Keeps every live replica at the newest published snapshot of each model it registered for.

    ``broker_replicas`` lists the registry, as last read ``registered``; draining replicas and ``unsound``
    ones (the reason by id) are skipped. ``bearer`` authenticates to every replica (default: no token). All
    methods must be called on the event loop that runs :meth:`run`; from another thread use
    ``loop.call_soon_threadsafe(publisher.publish, snapshot)``.
    """

    def __init__(
        self,
        broker_replicas: Callable[[], Awaitable[list[Replica]]],
        settings: PublishSection,
        discover_s: float,
        bearer: Bearer | None = None,
    ) -> None:
        self._broker_replicas = broker_replicas
        self._settings = settings
        self._discover_s = discover_s
        self._bearer = bearer or Bearer()
        self._newest: dict[str, Snapshot] = {}
        self._senders: dict[_SenderKey, _Sender] = {}
        self._tasks: dict[_SenderKey, asyncio.Task[None]] = {}
        self._discover_now = asyncio.Event()
        self._num_discoveries = 0
        self._progress = asyncio.Event()
        self._discovery_error: str | None = None
        self.registered: list[Replica] = []
        self.unsound: dict[str, str] = {}

    def publish(self, snapshot: Snapshot) -> None:
        """Make ``snapshot`` the newest of its model and return at once.

        Raises:
            Stale: the model has been published at this (epoch, version) or a newer one.
        """
        manifest = snapshot.manifest
        newest = self._newest.get(manifest.model)
        if newest is not None and manifest.order <= newest.manifest.order:
            raise Stale(
                f"{manifest.model} published at (epoch, version) {manifest.order} after "
                f"{newest.manifest.order}; publish each version once, in order"
            )
        self._newest[manifest.model] = snapshot
        self._discover_now.set()
        for sender in self._senders.values():
            sender.wake.set()

    def quarantine(self, replica_id: str, reason: str) -> None:
        """Push nothing to a replica any more, for as long as it lives."""
        self.unsound[replica_id] = reason
        self._discover_now.set()

    async def run(self) -> None:
        """Follow the registry until cancelled, then end every sender."""
        try:
            while True:
                self._discover_now.clear()
                await self._discover()
                self._num_discoveries += 1
                self._note_progress()
                await wait_for_event(self._discover_now, self._discover_s)
        finally:
            await self._end(list(self._tasks))

    async def wait_until_current(self, timeout_s: float) -> list[str]:
        """Wait until all replicas serve the newest; returns the ids still behind after ``timeout_s``.

        The registry is read again first, so a replica that has just joined is included. Quarantined ones
        are behind, and not waited for.
        """
        deadline_s = time.monotonic() + timeout_s
        num_discoveries = self._num_discoveries
        self._discover_now.set()
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            if self._num_discoveries > num_discoveries and not self._awaited():
                return self._behind()
            await wait_for_event(self._progress, remaining_s)
        return self._behind()

    @property
    def longest_push_s(self) -> float:
        """After that, a push has failed."""
        return self._settings.push_timeout_s

    def is_on_its_way(self, version: int) -> bool:
        """Whether a policy version is served by no replica of some kind, and is being pushed to one."""
        kinds = {replica.replica_id: replica.kind for replica in self.registered}
        by_kind: dict[str, list[_Sender]] = {}
        for sender in self._senders.values():
            if sender.key.model == "policy" and sender.key.replica_id in kinds:
                by_kind.setdefault(kinds[sender.key.replica_id], []).append(sender)
        return any(
            not any(sender.serves(version) for sender in senders)
            and any(sender.last_error is None for sender in senders)
            for senders in by_kind.values()
        )

    def state(self) -> dict[str, ReplicaPush]:
        """The state of each live replica, by replica id; for metrics."""
        by_replica: dict[str, list[_Sender]] = {}
        for sender in self._senders.values():
            by_replica.setdefault(sender.key.replica_id, []).append(sender)
        return {replica_id: _merged(senders) for replica_id, senders in by_replica.items()}

    def pushes(self) -> dict[tuple[str, str], PushCounts]:
        """Push counts by replica id and model, for live replicas; for metrics."""
        return {(s.key.replica_id, s.key.model): s.counts for s in self._senders.values()}

    def lags(self) -> dict[tuple[str, str], int]:
        """How many versions each replica is behind the newest, where known; for metrics."""
        lags = {(s.key.replica_id, s.key.model): s.lag() for s in self._senders.values()}
        return {key: lag for key, lag in lags.items() if lag is not None}

    def num_replicas(self) -> Counter[tuple[str, str]]:
        """Registered replicas by kind and state: current, behind, failing, quarantined or draining; for
        metrics."""
        behind, state = set(self._behind()), self.state()

        def state_of(replica: Replica) -> str:
            if replica.draining:
                return "draining"
            push = state.get(replica.replica_id, ReplicaPush())
            if push.is_quarantined or replica.replica_id in self.unsound:
                return "quarantined"
            if push.last_error is not None:
                return "failing"
            return "behind" if replica.replica_id in behind else "current"

        return Counter((replica.kind, state_of(replica)) for replica in self.registered)

    async def _discover(self) -> None:
        """Start senders for replicas that joined, end those that left, wake those that fell behind."""
        try:
            replicas = await self._broker_replicas()
        except Exception as error:
            # Boundary: without the registry the publisher continues with the replicas it knows.
            message = f"{type(error).__name__}: {error}"
            if message != self._discovery_error:
                logger.warning("cannot list replicas, keeping those known: %s", message)
            self._discovery_error = message
            return
        self._discovery_error, self.registered = None, replicas
        live = {
            _SenderKey(replica.replica_id, replica.address, model): replica
            for replica in replicas
            if not replica.draining and replica.replica_id not in self.unsound
            for model in replica.models
        }
        await self._end([key for key in self._tasks if key not in live])
        for key, replica in live.items():
            if key not in self._tasks:
                self._begin(key)
            elif self._lags(key.model, replica):
                self._senders[key].wake.set()

    def _lags(self, model: str, replica: Replica) -> bool:
        """Whether the registry lists an older version than the newest, as after a replica's restart."""
        newest = self._newest.get(model)
        if newest is None:
            return False
        is_of_run = replica.run_id == newest.manifest.run_id
        return not is_of_run or replica.serving.get(model, (-1, -1)) < newest.manifest.order

    def _begin(self, key: _SenderKey) -> None:
        sender = _Sender(key, self._newest, self._settings, self._bearer, self._note_progress)
        self._senders[key] = sender
        self._tasks[key] = asyncio.create_task(sender.run(), name=f"sender:{key.replica_id}")

    async def _end(self, keys: list[_SenderKey]) -> None:
        tasks = [self._tasks.pop(key) for key in keys]
        for key in keys:
            del self._senders[key]
        await end(tasks)

    def _behind(self) -> list[str]:
        return sorted({s.key.replica_id for s in self._senders.values() if s.is_behind()})

    def _awaited(self) -> list[str]:
        """The replicas that are behind and may still be brought up to date."""
        return [
            s.key.replica_id
            for s in self._senders.values()
            if s.is_behind() and not s.is_quarantined
        ]

    def _note_progress(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()


class _SenderKey(NamedTuple):
    """Includes the address: a replica that moves to another address is a new peer."""

    replica_id: str
    address: str
    model: str


class _Sender:
    """Keeps one model of one replica at the newest snapshot."""

    def __init__(
        self,
        key: _SenderKey,
        newest: Mapping[str, Snapshot],
        settings: PublishSection,
        bearer: Bearer,
        note_progress: Callable[[], None],
    ) -> None:
        self.key = key
        self.wake = asyncio.Event()
        self.held: WeightManifest | None = None
        self.pushed_at_s = 0.0  # monotonic
        self.last_push_s = 0.0
        self.last_push_bytes = 0
        self.last_error: str | None = None
        self.is_quarantined = False
        self.counts = PushCounts()
        self._newest = newest
        self._settings = settings
        self._bearer = bearer
        self._note_progress = note_progress

    async def run(self) -> None:
        """Connect and keep the replica current; retry with backoff after a failure."""
        waits_s = self._backoff()
        while True:
            pushed_at_s = self.pushed_at_s
            try:
                async with self._connect() as client:
                    await self._keep_current(client)
            except Exception as error:
                # Boundary: a replica's failure is isolated in its own sender.
                self._note_failure(error)
            if self.pushed_at_s > pushed_at_s:
                waits_s = self._backoff()  # a push succeeded in between: start over
            await asyncio.sleep(next(waits_s))

    def _backoff(self) -> Iterator[float]:
        retry_s = self._settings.retry_s
        return backoff(retry_s, max(MAX_RETRY_S, retry_s))

    def _connect(self) -> WeightsClient:
        return WeightsClient(self.key.address, self._settings.chunk_bytes, self._bearer)

    async def _keep_current(self, client: WeightsClient) -> None:
        while True:
            self.wake.clear()
            if self.key.model in self._newest:
                held = await client.status(self._settings.connect_timeout_s)
                self.held = held.get(self.key.model)
                if self.is_behind():
                    await self._push(client, self._newest[self.key.model])
                self.last_error, self.is_quarantined = None, False
                self._note_progress()
            await self.wake.wait()

    async def _push(self, client: WeightsClient, snapshot: Snapshot) -> None:
        manifest = snapshot.manifest
        weights_only = (
            self.held is not None and self.held.model_files_sha256 == manifest.model_files_sha256
        )
        started_s = time.monotonic()
        self.held = await client.push(
            snapshot, weights_only=weights_only, timeout_s=self._settings.push_timeout_s
        )
        self.pushed_at_s = time.monotonic()
        self.last_push_s = self.pushed_at_s - started_s
        files = {} if weights_only else snapshot.model_files
        self.last_push_bytes = manifest.num_bytes + sum(map(len, files.values()))
        self.counts.seconds.add(self.last_push_s)
        self.counts.num_bytes += self.last_push_bytes

    def lag(self) -> int | None:
        """How many versions the replica is behind; None if unknown or of another run or epoch."""
        newest, held = self._newest.get(self.key.model), self.held
        if newest is None or held is None or held.origin != newest.manifest.origin:
            return None
        return newest.manifest.version - held.version

    def serves(self, version: int) -> bool:
        """Whether the replica holds this version of the newest snapshot's epoch, or a later one."""
        newest, held = self._newest.get(self.key.model), self.held
        if newest is None or held is None or held.origin != newest.manifest.origin:
            return False
        return held.version >= version

    def is_behind(self) -> bool:
        """Whether the newest snapshot still has to be pushed to this replica.

        What is not newer than what it holds (the same version with different bytes, another run, an
        earlier epoch) is pushed too, rejected by the replica, and thereby reported.
        """
        snapshot = self._newest.get(self.key.model)
        return snapshot is not None and self.held != snapshot.manifest

    def _is_foreign(self) -> bool:
        """Whether the replica holds weights of another run, or of a later epoch than this learner's."""
        newest, held = self._newest.get(self.key.model), self.held
        if newest is None or held is None:
            return False
        return held.run_id != newest.manifest.run_id or held.epoch > newest.manifest.epoch

    def _note_failure(self, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        self.is_quarantined = isinstance(error, Stale) and self._is_foreign()
        if message != self.last_error:
            state = "quarantined" if self.is_quarantined else "not up to date"
            logger.warning(
                "%s of %s is %s: %s", self.key.model, self.key.replica_id, state, message
            )
        self.last_error = message
        self.counts.num_failures += 1
        if isinstance(error, Unreachable):
            self.held = None  # it may be restarting without weights: behind until it answers


def _merged(senders: list[_Sender]) -> ReplicaPush:
    """Merge one replica's senders into one state; the push is the latest of any model."""
    latest = max(senders, key=lambda sender: sender.pushed_at_s)
    return ReplicaPush(
        holding={s.key.model: s.held.order for s in senders if s.held is not None},
        last_push_s=latest.last_push_s,
        last_push_bytes=latest.last_push_bytes,
        last_error=next((s.last_error for s in senders if s.last_error is not None), None),
        is_quarantined=any(s.is_quarantined for s in senders),
    )
