"""The broker on Redis >= 6.2, a single server or the address of a primary.

Design: streams with one consumer group each; the group's pending list, with its idle times, *is* the
record of leases, so leases expire by Redis's own clock and are as durable as Redis's data. Groups are
created on demand, because a Redis that lost its data has lost them too. The price: all consumers of a
stage must use the same lease duration.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from forethought.queue import scripts
from forethought.queue.interface import (
    JSON,
    BrokerMemory,
    Consumer,
    ConsumerOptions,
    DeadLetter,
    Message,
    Stage,
    StageDepth,
    Watermark,
    check_size,
)
from forethought.queue.keys import GROUP, Keys
from forethought.queue.redis_consumer import RedisConsumer, message_of, script_args
from forethought.queue.redis_link import RedisLink
from forethought.types import Replica

_PUT_MESSAGES = 64
_PUT_BYTES = 4 << 20
"""Bounds of one round trip: ten times faster than one message at a time, and still cheap for Redis."""


class RedisBroker:
    """A run's broker in the Redis at ``url``; no I/O before its first use. See ``Broker``.

    Raises:
        InvalidInput: the URL or the run's name cannot be used.
    """

    def __init__(self, url: str, run: str) -> None:
        self._keys = Keys(run)
        self._link = RedisLink(url)

    async def put(self, stage: Stage, messages: Iterable[Message]) -> None:
        """See ``Broker.put``."""
        messages = list(messages)
        for message in messages:
            check_size(message)
        for chunk in _chunks(messages):
            args = [part for message in chunk for part in script_args(message)]
            await self._link.script(scripts.PUT, [self._keys.stream(stage)], args)

    def consumer(self, options: ConsumerOptions) -> Consumer:
        """See ``Broker.consumer``."""
        return RedisConsumer(self._link, self._keys, options)

    async def new_epoch(self, at_least: int) -> int:
        """See ``Broker.new_epoch``."""
        return int(await self._link.script(scripts.NEW_EPOCH, [self._keys.epoch], [at_least]))

    async def restore_epoch(self, epoch: int) -> int:
        """See ``Broker.restore_epoch``."""
        return int(await self._link.script(scripts.RESTORE_EPOCH, [self._keys.epoch], [epoch]))

    async def current_epoch(self) -> int:
        """See ``Broker.current_epoch``."""
        with self._link.reaching():
            return int(await self._link.client.get(self._keys.epoch) or 0)

    async def raise_watermark(self, watermark: Watermark) -> None:
        """See ``Broker.raise_watermark``."""
        args = [watermark.epoch, watermark.task_id]
        await self._link.script(scripts.RAISE_WATERMARK, [self._keys.watermark], args)

    @property
    def place(self) -> str:
        """See ``Broker.place``."""
        return f"run {self._keys.run_name} in Redis at {self._link.shown_url}"

    async def instance_id(self) -> str:
        """See ``Broker.instance_id``: the Redis server's run id plus a random id stored in its data."""
        data_id = await self._link.script(
            scripts.INSTANCE_ID, [self._keys.instance_id], [secrets.token_hex(8)]
        )
        with self._link.reaching():
            server = await self._link.client.info("server")
        return f"{server['run_id']}/{data_id.decode()}"

    async def clear_work(self) -> None:
        """See ``Broker.clear_work``."""
        keys = [key for s in Stage for key in (self._keys.stream(s), self._keys.attempts(s))]
        await self._link.script(scripts.CLEAR_WORK, keys, [GROUP])

    async def announce(self, replica: Replica, ttl_s: float) -> None:
        """See ``Broker.announce``."""
        registration = json.dumps(asdict(replica))
        args = [replica.replica_id, registration, round(ttl_s * 1000)]
        await self._link.script(scripts.ANNOUNCE, self._registry_keys, args)

    async def withdraw(self, replica_id: str) -> None:
        """See ``Broker.withdraw``."""
        await self._link.script(scripts.WITHDRAW, self._registry_keys, [replica_id])

    async def replicas(self) -> list[Replica]:
        """See ``Broker.replicas``."""
        values = await self._link.script(scripts.REPLICAS, self._registry_keys)
        return sorted(map(_decode_replica, values), key=lambda replica: replica.replica_id)

    async def set_run(self, epoch: int, manifest: dict[str, JSON]) -> None:
        """See ``Broker.set_run``."""
        keys, stored = [self._keys.run, self._keys.epoch], json.dumps(manifest | {"epoch": epoch})
        await self._link.script(scripts.SET_RUN, keys, [stored, epoch])

    async def run(self) -> dict[str, JSON] | None:
        """See ``Broker.run``."""
        with self._link.reaching():
            value = await self._link.client.get(self._keys.run)
        return None if value is None else json.loads(value)

    async def depths(self) -> dict[Stage, StageDepth]:
        """See ``Broker.depths``."""
        return {stage: await self._depth(stage) for stage in Stage}

    async def dead_letters(self) -> list[DeadLetter]:
        """See ``Broker.dead_letters``."""
        with self._link.reaching():
            entries: Any = await self._link.client.xrange(self._keys.dead_letters)
        return [_dead_letter(fields) for _, fields in entries]

    async def memory(self) -> BrokerMemory:
        """See ``Broker.memory``."""
        with self._link.reaching():
            said = await self._link.client.info("memory")
        policy = str(said.get("maxmemory_policy", "noeviction"))
        return BrokerMemory(int(said["used_memory"]), int(said.get("maxmemory", 0)), policy)

    async def ping(self) -> None:
        """See ``Broker.ping``."""
        with self._link.reaching():
            await self._link.client.ping()

    async def close(self) -> None:
        """See ``Broker.close``."""
        await self._link.client.aclose()

    @property
    def _registry_keys(self) -> list[str]:
        return [self._keys.replicas, self._keys.replicas_expiry]

    async def _depth(self, stage: Stage) -> StageDepth:
        num_entries, num_pending = await self._link.script(
            scripts.DEPTH, [self._keys.stream(stage)], [GROUP]
        )
        return StageDepth(waiting=num_entries - num_pending, pending=num_pending)


def _chunks(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """The messages in order, as many at a time as one round trip may take."""
    chunk: list[Message] = []
    num_bytes = 0
    for message in messages:
        num_bytes += len(message.body)
        if chunk and (len(chunk) == _PUT_MESSAGES or num_bytes > _PUT_BYTES):
            yield chunk
            chunk, num_bytes = [], len(message.body)
        chunk.append(message)
    if chunk:
        yield chunk


def _decode_replica(value: bytes) -> Replica:
    fields: dict[str, Any] = json.loads(value)
    fields["models"] = tuple(fields["models"])
    fields["serving"] = {model: tuple(at) for model, at in fields["serving"].items()}
    return Replica(**fields)


def _dead_letter(fields: dict[bytes, bytes]) -> DeadLetter:
    stage, reason = Stage(fields[b"stage"].decode()), fields[b"reason"].decode()
    return DeadLetter(stage, message_of(fields), reason)
