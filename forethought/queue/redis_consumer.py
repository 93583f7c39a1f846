"""A worker's access to one stage in Redis.

Design: receiving takes two commands (claim expired entries, read new ones); everything else takes one
script. A blocking read is cut into slices with a claim before each, so a dead worker's entries are
reclaimed within a third of a lease after it expires. The price is one claim per idle consumer and
slice, which costs Redis microseconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from redis import exceptions

from forethought.queue import scripts
from forethought.queue.interface import ConsumerOptions, Delivery, Message, Watermark
from forethought.queue.keys import GROUP, MAX_DEAD_LETTERS, Keys
from forethought.queue.redis_link import MAX_BLOCK_S, RedisLink, is_missing_group

T = TypeVar("T")

log = logging.getLogger(__name__)


class RedisConsumer:
    """See ``Consumer``; made by ``RedisBroker.consumer``."""

    def __init__(self, link: RedisLink, keys: Keys, options: ConsumerOptions) -> None:
        self._link = link
        self._keys = keys
        self.options = options
        self._stream = keys.stream(options.stage)
        self._attempts = keys.attempts(options.stage)
        self._begun: set[str] = set()  # held entries on which this consumer began an attempt
        self.num_buried = 0

    async def receive(self, max_items: int, wait_s: float) -> list[Delivery]:
        """See ``Consumer.receive``."""
        until_s = time.monotonic() + wait_s
        while True:
            claimed = await self._with_group(partial(self._claim, max_items))
            if claimed:
                return claimed
            left_s = until_s - time.monotonic()
            slice_s = min(left_s, MAX_BLOCK_S, self.options.lease_s / 3)
            fresh = await self._with_group(partial(self._read, max_items, slice_s))
            if fresh or time.monotonic() >= until_s:
                return fresh

    async def begin(self, delivery: Delivery) -> int:
        """See ``Consumer.begin``."""
        args = [GROUP, self.options.name, delivery.entry_id]
        num_attempts = int(await self._if_group(scripts.BEGIN, args) or 0)
        if num_attempts:
            self._begun.add(delivery.entry_id)
        return num_attempts

    async def renew(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """See ``Consumer.renew``."""
        if not deliveries:
            return []
        args = [GROUP, self.options.name, *(d.entry_id for d in deliveries)]
        ours = {entry_id.decode() for entry_id in await self._if_group(scripts.RENEW, args) or []}
        self._begun -= {d.entry_id for d in deliveries} - ours
        return [d for d in deliveries if d.entry_id in ours]

    async def finish(self, delivery: Delivery, result: Message | None) -> bool:
        """See ``Consumer.finish``."""
        self.options.check_result(result)
        keys, args = [self._stream, self._attempts], [GROUP, delivery.entry_id]
        if result is not None and self.options.result_stage is not None:
            keys.append(self._keys.stream(self.options.result_stage))
            args += script_args(result)
        return await self._retire(delivery, scripts.FINISH, keys, args)

    async def discard(self, delivery: Delivery) -> None:
        """See ``Consumer.discard``."""
        await self.finish(delivery, None)

    async def release(self, delivery: Delivery) -> None:
        """See ``Consumer.release``."""
        num_begun = int(delivery.entry_id in self._begun)
        args = [GROUP, self.options.name, delivery.entry_id, num_begun]
        await self._if_group(scripts.RELEASE, args)
        self._begun.discard(delivery.entry_id)

    async def expire(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Consumer.expire``."""
        if deliveries:
            args = [GROUP, self.options.name, *(d.entry_id for d in deliveries)]
            await self._if_group(scripts.EXPIRE, args)
            self._begun -= {d.entry_id for d in deliveries}

    async def watermark(self) -> Watermark:
        """See ``Consumer.watermark``."""
        with self._link.reaching():
            fields: Any = self._link.client.hmget(self._keys.watermark, "epoch", "task_id")
            epoch, task_id = await fields
        return Watermark(int(epoch or 0), int(task_id or 0))

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """See ``Consumer.bury``."""
        log.error("task %d is dead-lettered: %s", delivery.message.task_id, reason)
        keys = [self._stream, self._attempts, self._keys.dead_letters]
        args: list[Any] = [GROUP, delivery.entry_id, MAX_DEAD_LETTERS, delivery.stage.value, reason]
        args += script_args(delivery.message)
        result = self.options.error_result_or_none(delivery.message, reason)
        if result is not None and self.options.result_stage is not None:
            keys.append(self._keys.stream(self.options.result_stage))
            args += script_args(result)
        is_buried = await self._retire(delivery, scripts.BURY, keys, args)
        self.num_buried += is_buried
        return is_buried

    async def _retire(
        self, delivery: Delivery, lua: str, keys: list[str], args: Sequence[object]
    ) -> bool:
        was_pending = bool(await self._link.script(lua, keys, args))
        self._begun.discard(delivery.entry_id)
        return was_pending

    async def _claim(self, max_items: int) -> list[Delivery]:
        """Claim expired leases; dead-letter entries out of attempts, return the rest."""
        with self._link.reaching():
            expired = await self._claim_expired(max_items)
            if not expired:
                return []
            ids = [delivery.entry_id for delivery in expired]
            num_attempts = await self._link.client.hmget(self._attempts, ids)
        # An attempt begun under an earlier lease, even one of this consumer, must not be un-counted.
        self._begun -= set(ids)
        alive = []
        for delivery, value in zip(expired, num_attempts, strict=True):
            num_begun = int(value or 0)
            if num_begun < self.options.max_attempts:
                alive.append(replace(delivery, num_earlier_attempts=num_begun))
            else:
                await self.bury(delivery, self.options.cap_reason())
        return alive

    async def _claim_expired(self, max_items: int) -> list[Delivery]:
        """One pass over the pending list, which XAUTOCLAIM scans in bounded steps."""
        min_idle_ms, cursor = max(1, round(self.options.lease_s * 1000)), b"0-0"
        while True:
            reply = await self._link.client.xautoclaim(
                self._stream, GROUP, self.options.name, min_idle_ms, cursor, max_items
            )
            cursor, entries = reply[0], reply[1]
            claimed = [self._delivery(entry_id, fields) for entry_id, fields in entries if fields]
            if claimed or cursor == b"0-0":
                return claimed

    async def _read(self, max_items: int, wait_s: float) -> list[Delivery]:
        block_ms = round(wait_s * 1000)
        with self._link.reaching():
            streams: Any = await self._link.client.xreadgroup(
                GROUP,
                self.options.name,
                {self._stream: ">"},
                count=max_items,
                block=block_ms if block_ms > 0 else None,  # to Redis, 0 means forever
            )
        return [self._delivery(*entry) for _, entries in streams or [] for entry in entries]

    async def _with_group(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, first creating the group if Redis has none (a new run, or lost data)."""
        try:
            return await read()
        except exceptions.ResponseError as error:
            if not is_missing_group(error):
                raise
        await self._make_group()
        return await read()

    async def _make_group(self) -> None:
        try:
            with self._link.reaching():
                # From 0, so that messages put before the group existed are delivered too.
                await self._link.client.xgroup_create(self._stream, GROUP, "0", mkstream=True)
        except exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another consumer created it first
                raise

    async def _if_group(self, lua: str, args: Sequence[object]) -> Any:
        """Run a lease script; None if the group, and with it every lease, is gone."""
        try:
            return await self._link.script(lua, [self._stream, self._attempts], args)
        except exceptions.ResponseError as error:
            if not is_missing_group(error):
                raise
            return None

    def _delivery(self, entry_id: bytes, fields: dict[bytes, bytes]) -> Delivery:
        return Delivery(self.options.stage, entry_id.decode(), message_of(fields))


def message_of(fields: dict[bytes, bytes]) -> Message:
    """The message of a stream entry; an empty one of epoch 0, which no learner has, if it is of none."""
    try:
        return Message(int(fields[b"task_id"]), int(fields[b"epoch"]), fields[b"body"])
    except (KeyError, ValueError):
        return Message(task_id=0, epoch=0, body=b"")


def script_args(message: Message) -> list[Any]:
    """A message as arguments of a script that appends it."""
    return [message.task_id, message.epoch, message.body]
