"""The worker loop on a Redis that becomes unreachable, or restarts empty."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from forethought.queue import Stage, connect
from forethought.queue.embedded import EmbeddedRedis
from tests.forethought.replica.test_worker import (
    Weights,
    consumer_of,
    results,
    running,
    task,
    worker_of,
)


class RedisProxy:
    """A TCP proxy to a Redis on a socket; it can be cut and restored while the Redis keeps its data."""

    def __init__(self, redis_url: str) -> None:
        self._socket_path = urlsplit(redis_url).path
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    async def restore(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._socket_path)
        self._writers += [writer, there_writer]
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
        finally:
            sink.close()


async def test_finishing_is_retried_until_redis_is_back(redis_url: str) -> None:
    proxy = RedisProxy(redis_url)
    await proxy.restore()
    run = f"test-{uuid.uuid4().hex}"
    direct, broker = connect(redis_url, run), connect(f"redis://127.0.0.1:{proxy.port}", run)
    await direct.put(Stage.TASKS, [task(1)])
    handler = Weights()
    handler.may_finish.clear()
    worker = worker_of(handler, consumer_of(broker, lease_s=60))
    async with running(worker):
        await handler.started.wait()
        await proxy.cut()
        handler.may_finish.set()
        await asyncio.sleep(1.5)  # longer than the client's own retries
        assert worker.num_done == 0
        await proxy.restore()
        assert await results(direct, 1) == {1: b"done"}
        await direct.put(Stage.TASKS, [task(2)])
        assert await results(direct, 1) == {2: b"done"}
    await broker.close()
    await direct.close()
    await proxy.cut()


async def test_stopping_without_redis_ends_with_the_lease(redis_url: str) -> None:
    proxy = RedisProxy(redis_url)
    await proxy.restore()
    broker = connect(f"redis://127.0.0.1:{proxy.port}", f"test-{uuid.uuid4().hex}")
    await broker.put(Stage.TASKS, [task(1)])
    handler = Weights()
    handler.may_finish.clear()
    async with running(worker_of(handler, consumer_of(broker))):
        await handler.started.wait()
        await proxy.cut()
        handler.may_finish.set()
    await broker.close()


async def test_survives_a_redis_that_restarts_empty(socket_dir: Path) -> None:
    with EmbeddedRedis(socket_dir=socket_dir) as redis:
        broker = connect(redis.url, "run")
        await broker.put(Stage.TASKS, [task(1)])
        worker = worker_of(Weights(), consumer_of(broker))
        run = asyncio.create_task(worker.run())
        assert await results(broker, 1) == {1: b"done"}
        life = await broker.instance_id()
    with EmbeddedRedis(socket_dir=socket_dir):
        assert await broker.instance_id() != life
        await broker.put(Stage.TASKS, [task(2)])
        assert await results(broker, 1) == {2: b"done"}
        worker.stop()
        await run
    await broker.close()
