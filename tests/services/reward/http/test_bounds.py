"""The bounds of a connection, of the ops port and of the reward service's, over raw sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from forethought.compute.served_model import ServedModel
from forethought.telemetry.connection import Bounds
from forethought.telemetry.ops import EmbeddedHttpServer, OpsServer
from services.reward.http.fast_path import RewardProtocol
from tests.services.reward.http.test_fast_path import Server, raw, request, send_endlessly
from tests.tiny import build_model_directory, serve

MAX = Bounds().max_head_bytes
PAGES = {"ops": "/healthz", "reward": "/openapi.json"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    directory: Path = build_model_directory(tmp_path_factory.mktemp("model"), seed=1)
    return serve(directory, "policy", version=4)


class Port:
    """A server within bounds, and a page of it."""

    def __init__(self, kind: str, policy: ServedModel, bounds: Bounds) -> None:
        self.page, self.reward = PAGES[kind], Server(policy)
        self.server: EmbeddedHttpServer = (
            OpsServer("127.0.0.1", 0, lambda: True, dict, CollectorRegistry(), bounds)
            if kind == "ops"
            else EmbeddedHttpServer(self.reward.app, "127.0.0.1", 0, RewardProtocol, bounds)
        )

    def get(self, *headers: str, page: str = "") -> bytes:
        lines = (f"GET {page or self.page} HTTP/1.1", "host: x", *headers)
        return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def replies(self, sent: bytes) -> list[int]:
        """The statuses of all replies, up to the end of the connection."""
        async with self.connection() as (reader, writer):
            writer.write(sent)
            replies = (await reader.read()).split(b"HTTP/1.1 ")[1:]
        return [int(reply.split(maxsplit=1)[0]) for reply in replies]

    async def is_answered(self) -> bool:
        return await self.replies(self.get("connection: close")) == [200]


@asynccontextmanager
async def port_of(kind: str, policy: ServedModel, bounds: Bounds) -> AsyncIterator[Port]:
    port = Port(kind, policy, bounds)
    await port.server.start()
    yield port
    await port.server.stop()
    await port.reward.service.close()


@pytest.fixture(params=PAGES)
async def port(request: pytest.FixtureRequest, policy: ServedModel) -> AsyncIterator[Port]:
    async with port_of(request.param, policy, Bounds()) as port:
        yield port


@pytest.fixture(params=PAGES)
async def hasty(request: pytest.FixtureRequest, policy: ServedModel) -> AsyncIterator[Port]:
    async with port_of(request.param, policy, Bounds(tick_s=0.05)) as port:
        yield port


async def test_a_long_head_is_refused_and_a_shorter_one_is_not(port: Port) -> None:
    for sent in (
        port.get("a: " + "b" * MAX),
        port.get(*["a: " + "b" * 100] * (MAX // 100)),
        port.get(page=f"{port.page}?{'b' * MAX}"),
    ):
        assert await port.replies(sent) == [431]
    assert await port.replies(port.get("connection: close", "a: " + "b" * (MAX - 200))) == [200]
    long = port.get("a: " + "b" * MAX)
    assert await port.replies(port.get("connection: close") + long) == [200]
    assert await port.replies(port.get() * 3 + long) == [200] * 3 + [431]


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\na: ",
        b"GET /",
        b"\r\n",
        b"POST /v1/match HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;",
        b"POST /v1/match HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: ",
        b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb",
    ],
    ids=["header", "path", "empty lines", "chunk extension", "trailer", "tiny chunks"],
)
async def test_no_part_is_read_without_end(port: Port, begin: bytes) -> None:
    repeated = {b"\r\n": b"\r\n", b"\nb": b"\r\n1\r\nb"}
    chunk = repeated.get(begin[-2:], b"bb") * 50_000
    async with port.connection() as (_, writer):
        writer.write(begin)
        sending = asyncio.create_task(send_endlessly(writer, chunk))
        assert await port.is_answered()
        with pytest.raises(ConnectionError):
            await sending


@pytest.mark.parametrize("target", ["/v1/match", "/v1/match?x=1"], ids=["fast path", "asgi"])
async def test_a_body_may_come_in_many_chunks_but_not_in_any_number(
    policy: ServedModel, target: str
) -> None:
    head = f"POST {target} HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    content = b'{"kind": "exact", "items": [{"prediction": "a", "truth": "a"}]}'
    body = b"%x\r\n%b\r\n" % (len(content), content)
    async with port_of("reward", policy, Bounds()) as port:
        for number, status in ((4_000, 200), (5_000, 400)):
            sent = head.encode() + body + b"1\r\n \r\n" * number + b"0\r\n\r\n"
            assert await port.replies(sent) == [status]


@pytest.mark.parametrize(
    ("sent", "replies"),
    [
        (b"", []),
        (b"\r\n", []),
        (b"GET /", [408]),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", [408]),
    ],
)
async def test_a_head_has_to_arrive(hasty: Port, sent: bytes, replies: list[int]) -> None:
    assert await hasty.replies(sent) == replies
    assert await hasty.replies(hasty.get() + sent) == [200, *replies]


@pytest.mark.parametrize("target", ["/v1/match", "/v1/match?x=1"], ids=["fast path", "asgi"])
async def test_a_body_has_to_arrive(policy: ServedModel, target: str) -> None:
    head = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n".encode()
    async with port_of("reward", policy, Bounds(tick_s=0.05)) as port:
        assert await port.replies(head) == [408]
        assert await port.replies(request("yes") + head + b"{") == [200, 408]
        async with port.connection() as (_, writer):
            writer.write(head)
            with pytest.raises(ConnectionError):
                await send_endlessly(writer, b" ", pause_s=0.01)


async def test_a_slow_answer_is_waited_for(policy: ServedModel) -> None:
    bounds = Bounds(tick_s=0.01)
    asked = raw({"prefix": "a", "continuations": ["b"]}, "connection: close", path="/v1/logprobs")
    async with port_of("reward", policy, bounds) as port:
        with policy.hold():
            replies = asyncio.create_task(port.replies(asked))
            while not port.reward.service.batcher.num_waiting_tokens:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.1)  # many ticks
        assert await replies == [200]


async def test_a_reply_has_to_be_taken(policy: ServedModel) -> None:
    async with port_of("reward", policy, Bounds(reply_s=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.server.port, limit=1)
        sending = asyncio.create_task(send_endlessly(writer, port.get() * 100))
        with pytest.raises(ConnectionError):
            await sending
        assert await port.is_answered()
        del reader


@pytest.mark.parametrize("kind", PAGES)
async def test_idle_connections_make_room(policy: ServedModel, kind: str) -> None:
    async with port_of(kind, policy, Bounds(max_connections=3)) as port, AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(port.connection()) for _ in range(9)]
        for reader, _ in opened[:6]:
            with pytest.raises(ConnectionError):
                await read_to_end(reader)
        assert await port.is_answered()
        reader, writer = opened[-1]
        writer.write(port.get("connection: close"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200")


async def test_connections_at_work_are_kept(policy: ServedModel) -> None:
    asked = raw({"prefix": "a", "continuations": ["b"]}, "connection: close", path="/v1/logprobs")
    async with port_of("reward", policy, Bounds(max_connections=2)) as port:
        with policy.hold():
            replies = [asyncio.create_task(port.replies(asked)) for _ in range(2)]
            while len(port.server._server.server_state.tasks) < 2:
                await asyncio.sleep(0.001)
            assert await port.replies(b"") == [503]
        assert await asyncio.gather(*replies) == [[200], [200]]


def test_half_of_the_open_files_are_left() -> None:
    assert 1 <= Bounds().max_connections <= 4096
    assert Bounds(1).max_connections == 1


async def read_to_end(reader: asyncio.StreamReader) -> None:
    """An aborted connection ends with a reset or with the end of the stream."""
    assert await reader.read() == b""
    raise ConnectionResetError
