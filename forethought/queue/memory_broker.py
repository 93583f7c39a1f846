"""The in-memory broker: the same contract, for one process and one event loop.

Design: no locks, because nothing here awaits between a read and the write that depends on it (Redis
needs scripts for that). Leases and registrations expire by an injected clock, so tests advance time
instead of sleeping. The price: if the process dies, the work is lost.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from forethought.background import wait_for_event
from forethought.queue.interface import (
    JSON,
    BrokerMemory,
    Consumer,
    ConsumerOptions,
    DeadLetter,
    Delivery,
    Message,
    Stage,
    StageDepth,
    Watermark,
    check_size,
)
from forethought.queue.keys import MAX_DEAD_LETTERS
from forethought.types import Replica

_SLICE_S = 1.0  # a waiting consumer checks for expired leases at least this often


@dataclass(slots=True)
class _Entry:
    """A message in a stage. Not leased while ``owner`` is empty."""

    message: Message
    owner: str = ""
    leased_at_s: float = 0.0
    num_attempts: int = 0
    begun_by_owner: bool = False


@dataclass(slots=True)
class _StageState:
    """The entries of a stage by id, in order of arrival, and the event that new ones set."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    arrival: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryBroker:
    """A run's broker inside this process. See ``Broker``.

    ``clock`` returns seconds and must be monotonic; leases and registrations expire by it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self._reset()

    def _reset(self) -> None:
        self._instance_id = secrets.token_hex(8)
        self._epoch = 0
        self.watermark = Watermark()
        self._stages = {stage: _StageState() for stage in Stage}
        self._dead: deque[DeadLetter] = deque(maxlen=MAX_DEAD_LETTERS)
        self._manifest: dict[str, JSON] | None = None
        self._replicas: dict[str, tuple[Replica, float]] = {}

    def lose_everything(self) -> None:
        """Simulate the restart of a Redis without persistence; for tests."""
        stages = self._stages
        self._reset()
        for state in stages.values():
            state.arrival.set()  # waiting consumers wake up and see the new state

    async def put(self, stage: Stage, messages: Iterable[Message]) -> None:
        """See ``Broker.put``."""
        messages = list(messages)
        for message in messages:
            check_size(message)
        for message in messages:
            self.append(stage, _Entry(message))

    def consumer(self, options: ConsumerOptions) -> Consumer:
        """See ``Broker.consumer``."""
        return MemoryConsumer(self, options)

    async def new_epoch(self, at_least: int) -> int:
        """See ``Broker.new_epoch``."""
        self._epoch = max(self._epoch + 1, at_least)
        return self._epoch

    async def restore_epoch(self, epoch: int) -> int:
        """See ``Broker.restore_epoch``."""
        self._epoch = max(self._epoch, epoch)
        return self._epoch

    async def current_epoch(self) -> int:
        """See ``Broker.current_epoch``."""
        return self._epoch

    async def raise_watermark(self, watermark: Watermark) -> None:
        """See ``Broker.raise_watermark``."""
        self.watermark = max(self.watermark, watermark)

    @property
    def place(self) -> str:
        """See ``Broker.place``."""
        return "the run in this process"

    async def instance_id(self) -> str:
        """See ``Broker.instance_id``."""
        return self._instance_id

    async def clear_work(self) -> None:
        """See ``Broker.clear_work``."""
        for state in self._stages.values():
            state.entries.clear()

    async def announce(self, replica: Replica, ttl_s: float) -> None:
        """See ``Broker.announce``."""
        self._replicas[replica.replica_id] = (replica, self._clock() + ttl_s)

    async def withdraw(self, replica_id: str) -> None:
        """See ``Broker.withdraw``."""
        self._replicas.pop(replica_id, None)

    async def replicas(self) -> list[Replica]:
        """See ``Broker.replicas``."""
        now_s = self._clock()
        self._replicas = {i: entry for i, entry in self._replicas.items() if entry[1] > now_s}
        return [self._replicas[replica_id][0] for replica_id in sorted(self._replicas)]

    async def set_run(self, epoch: int, manifest: dict[str, JSON]) -> None:
        """See ``Broker.set_run``."""
        if epoch >= self._epoch:
            self._manifest = manifest | {"epoch": epoch}

    async def run(self) -> dict[str, JSON] | None:
        """See ``Broker.run``."""
        return self._manifest

    async def depths(self) -> dict[Stage, StageDepth]:
        """See ``Broker.depths``."""
        depths = {}
        for stage, state in self._stages.items():
            pending = sum(bool(entry.owner) for entry in state.entries.values())
            depths[stage] = StageDepth(len(state.entries) - pending, pending)
        return depths

    async def dead_letters(self) -> list[DeadLetter]:
        """See ``Broker.dead_letters``."""
        return list(self._dead)

    async def memory(self) -> BrokerMemory:
        """See ``Broker.memory``; the limit is the machine's."""
        bodies = (e.message.body for s in self._stages.values() for e in s.entries.values())
        return BrokerMemory(sum(map(len, bodies)))

    async def ping(self) -> None:
        """See ``Broker.ping``."""

    async def close(self) -> None:
        """See ``Broker.close``; the work stays available to other users of this object."""

    # Used by consumers on the shared state; not part of ``Broker``.

    def append(self, stage: Stage, entry: _Entry) -> None:
        """Append an entry to the queue and wake waiting consumers."""
        state = self._stages[stage]
        state.entries[f"{next(self._ids)}-0"] = entry
        state.arrival.set()
        state.arrival = asyncio.Event()

    def entry(self, delivery: Delivery) -> _Entry | None:
        """The entry of a delivery, or None once it was retired or returned to the queue."""
        return self._stages[delivery.stage].entries.get(delivery.entry_id)

    def retire(self, delivery: Delivery) -> bool:
        """Remove an entry; True exactly once."""
        return self._stages[delivery.stage].entries.pop(delivery.entry_id, None) is not None

    def take(
        self, options: ConsumerOptions, max_items: int, wanted: Callable[[_Entry], bool]
    ) -> list[Delivery]:
        """Lease up to ``max_items`` entries for which ``wanted`` holds to a consumer."""
        entries = self._stages[options.stage].entries
        taken = list(itertools.islice((i for i, e in entries.items() if wanted(e)), max_items))
        for entry_id in taken:
            entry = entries[entry_id]
            entry.owner, entry.leased_at_s = options.name, self._clock()
            entry.begun_by_owner = False
        return [
            Delivery(options.stage, i, entries[i].message, entries[i].num_attempts) for i in taken
        ]

    def is_expired(self, entry: _Entry, lease_s: float) -> bool:
        """Whether an entry's lease has expired."""
        return bool(entry.owner) and self._clock() - entry.leased_at_s >= lease_s

    def restart_lease(self, entry: _Entry) -> None:
        """Renew a lease."""
        entry.leased_at_s = self._clock()

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Keep a dead letter, dropping the oldest if there are too many."""
        self._dead.append(letter)

    async def arrival(self, stage: Stage, wait_s: float) -> None:
        """Wait until an entry is appended to a stage, at most ``wait_s`` seconds."""
        await wait_for_event(self._stages[stage].arrival, wait_s)


class MemoryConsumer:
    """See ``Consumer``; made by ``MemoryBroker.consumer``."""

    def __init__(self, broker: MemoryBroker, options: ConsumerOptions) -> None:
        self._broker = broker
        self.options = options
        self.num_buried = 0

    async def receive(self, max_items: int, wait_s: float) -> list[Delivery]:
        """See ``Consumer.receive``."""
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + wait_s
        while True:
            taken = await self._claim(max_items) or self._broker.take(
                self.options, max_items, lambda entry: not entry.owner
            )
            left_s = until_s - now_s()
            if taken or left_s <= 0:
                return taken
            slice_s = min(left_s, _SLICE_S, self.options.lease_s / 3)
            await self._broker.arrival(self.options.stage, slice_s)

    async def begin(self, delivery: Delivery) -> int:
        """See ``Consumer.begin``."""
        entry = self._ours(delivery)
        if entry is None:
            return 0
        entry.num_attempts += 1
        entry.begun_by_owner = True
        return entry.num_attempts

    async def renew(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """See ``Consumer.renew``."""
        ours = []
        for delivery in deliveries:
            entry = self._ours(delivery)
            if entry is not None:
                self._broker.restart_lease(entry)
                ours.append(delivery)
        return ours

    async def finish(self, delivery: Delivery, result: Message | None) -> bool:
        """See ``Consumer.finish``."""
        self.options.check_result(result)
        retired = self._broker.retire(delivery)
        if retired:
            self._publish(result)
        return retired

    async def discard(self, delivery: Delivery) -> None:
        """See ``Consumer.discard``."""
        await self.finish(delivery, None)

    async def release(self, delivery: Delivery) -> None:
        """See ``Consumer.release``."""
        entry = self._ours(delivery)
        if entry is None:
            return
        self._broker.retire(delivery)
        num_attempts = entry.num_attempts - int(entry.begun_by_owner)
        fresh = replace(entry, owner="", num_attempts=num_attempts, begun_by_owner=False)
        self._broker.append(delivery.stage, fresh)

    async def watermark(self) -> Watermark:
        """See ``Consumer.watermark``."""
        return self._broker.watermark

    async def expire(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer.expire``."""
        for delivery in deliveries:
            entry = self._ours(delivery)
            if entry is not None:
                entry.leased_at_s = -math.inf

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """See ``Consumer.bury``."""
        retired = self._broker.retire(delivery)
        if retired:
            self._broker.add_dead_letter(DeadLetter(delivery.stage, delivery.message, reason))
            self._publish(self.options.error_result_or_none(delivery.message, reason))
        self.num_buried += retired
        return retired

    def _ours(self, delivery: Delivery) -> _Entry | None:
        entry = self._broker.entry(delivery)
        return entry if entry is not None and entry.owner == self.options.name else None

    def _publish(self, result: Message | None) -> None:
        if result is not None and self.options.result_stage is not None:
            self._broker.append(self.options.result_stage, _Entry(result))

    async def _claim(self, max_items: int) -> list[Delivery]:
        """Claim expired leases; dead-letter entries out of attempts, return the rest."""
        expired = self._broker.take(
            self.options,
            max_items,
            lambda entry: self._broker.is_expired(entry, self.options.lease_s),
        )
        alive = []
        for delivery in expired:
            if delivery.num_earlier_attempts < self.options.max_attempts:
                alive.append(delivery)
            else:
                await self.bury(delivery, self.options.cap_reason())
        return alive
