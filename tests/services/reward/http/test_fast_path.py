"""The reward service's connection protocol over raw sockets: byte streams that no HTTP client sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forethought import objectives
from forethought.auth import Guard
from forethought.auth.tokens import Tokens
from forethought.compute.served_model import ServedModel
from forethought.telemetry.ops import EmbeddedHttpServer
from services.reward.http.fast_path import RewardProtocol
from services.reward.http.server import RewardApp
from services.reward.limits import Limits
from services.reward.metrics import CLIENT_DISCONNECTED
from services.reward.scoring import Scorer
from services.reward.service import RewardService
from tests.endpoints import OPEN
from tests.tiny import THINK_CLOSE, THINK_OPEN, build_model_directory, serve

MAX_BODY_BYTES = 20_000


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    directory: Path = build_model_directory(tmp_path_factory.mktemp("model"), seed=1)
    return serve(directory, "policy", version=4)


class Server:
    """A reward service on a port, and raw connections to it."""

    def __init__(self, policy: ServedModel, guard: Guard = OPEN) -> None:
        self.service = RewardService(
            Scorer(policy, None, max_batch_tokens=1000),
            {"rlp": objectives.load("rlp")},
            think_open=THINK_OPEN,
            think_close=THINK_CLOSE,
            limits=Limits(max_batch_tokens=1000),
        )
        self.app = RewardApp(self.service, MAX_BODY_BYTES, guard)
        self.http = EmbeddedHttpServer(self.app, "127.0.0.1", 0, RewardProtocol)

    @asynccontextmanager
    async def connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http.port)
        try:
            yield reader, writer
        finally:
            writer.close()


@pytest.fixture
async def server(policy: ServedModel) -> AsyncIterator[Server]:
    server = Server(policy)
    await server.http.start()
    yield server
    await server.http.stop()
    await server.service.close()


def request(prediction: str, *headers: str, path: str = "/v1/match", version: str = "1.1") -> bytes:
    items = [{"prediction": prediction, "truth": "yes"}]
    return raw({"kind": "exact", "items": items}, *headers, path=path, version=version)


def raw(body: Any, *headers: str, path: str, version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(content)}", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + content


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, json.loads(body)


def counts(server: Server) -> dict[tuple[str, int], int]:
    """Number of recorded requests by path and status."""
    return {key: found.num_values for key, found in server.app.seconds.seconds.items()}


async def send_endlessly(writer: asyncio.StreamWriter, chunk: bytes, pause_s: float = 0.0) -> None:
    while True:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(pause_s)


def matches(body: Any) -> bool:
    found: bool = body["items"][0]["match"]
    return found


@pytest.mark.parametrize("cut", [1, 10, 60, 100, 200])
async def test_a_request_may_come_in_any_pieces(server: Server, cut: int) -> None:
    async with server.connection() as (reader, writer):
        for _ in range(2):  # the second one over the kept-alive connection
            whole = request("yes")
            for start in range(0, len(whole), cut):
                writer.write(whole[start : start + cut])
                await writer.drain()
                await asyncio.sleep(0)
            status, _, body = await answer(reader)
            assert (status, matches(body)) == (200, True)


async def test_requests_sent_without_waiting_are_answered_in_order(server: Server) -> None:
    slow = raw({"prefix": "a", "continuations": ["b"]}, path="/v1/logprobs")
    unusual = request("no", path="/v1/match?x=1")  # takes ASGI, between two on the fast path
    async with server.connection() as (reader, writer):
        writer.write(slow + request("yes") + unusual + request("yes") + slow)
        answers = [(await answer(reader))[2] for _ in range(5)]
    assert [next(iter(body)) for body in answers] == ["model", "items", "items", "items", "model"]
    assert [matches(body) for body in answers[1:4]] == [True, False, True]


@pytest.mark.parametrize(
    ("asked", "connection"),
    [
        (request("yes", "connection: close"), "close"),
        (request("yes", version="1.0"), "close"),
        (request("yes", path="/v1/match?a=b"), None),
    ],
    ids=["close", "1.0", "query"],
)
async def test_unusual_requests_are_answered_alike(
    server: Server, asked: bytes, connection: str | None
) -> None:
    async with server.connection() as (reader, writer):
        writer.write(asked)
        status, headers, body = await answer(reader)
        assert (status, headers.get("connection")) == (200, connection)
        assert headers["content-type"] == "application/json"
        assert "date" in headers
        assert matches(body)
        if connection == "close":
            assert await reader.read() == b""


async def test_a_client_may_wait_for_100_continue(server: Server) -> None:
    head, _, body = request("yes", "expect: 100-continue").partition(b"\r\n\r\n")
    async with server.connection() as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(body)
        assert (await answer(reader))[0] == 200


async def test_a_body_without_end_is_refused_and_then_cut_off(server: Server) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    async with server.connection() as (reader, writer):
        writer.write(head + chunk * (MAX_BODY_BYTES // 0x1000 + 1))
        status, _, body = await answer(reader)
        assert status == body["error"]["status"] == 413
        with pytest.raises(ConnectionError):
            await send_endlessly(writer, chunk)
    async with server.connection() as (reader, writer):
        writer.write(request("yes"))
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize("path", ["/v1/match", "/v1/match?x=1"], ids=["fast path", "asgi"])
async def test_without_a_token_the_body_is_not_awaited(policy: ServedModel, path: str) -> None:
    server = Server(policy, Guard(client=Tokens(("secret",))))
    await server.http.start()
    head, _, body = request("yes", path=path).partition(b"\r\n\r\n")
    async with server.connection() as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        status, headers, _ = await answer(reader)
        assert (status, headers["www-authenticate"]) == (401, "bearer")
        writer.write(body)  # too late: dropped, not parsed as a request
        for token, expected in (("secret", 200), ("secreT", 401)):
            writer.write(request("yes", f"Authorization: Bearer {token}", path=path))
            assert (await answer(reader))[0] == expected
    assert counts(server) == {("/v1/match", 401): 2, ("/v1/match", 200): 1}
    await server.http.stop()
    await server.service.close()


async def test_anything_but_http_is_refused(server: Server) -> None:
    async with server.connection() as (reader, writer):
        writer.write(b"\x16\x03\x01 is how TLS begins\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")


async def test_a_client_that_disconnects_cancels_all_its_work(
    server: Server, policy: ServedModel
) -> None:
    batcher = server.service.batcher
    asked = raw({"prefix": "a", "continuations": ["b"]}, path="/v1/logprobs")
    with policy.hold():  # the compute thread cannot start
        async with server.connection() as (_, writer):
            writer.write(asked * 3)
            while not batcher.num_waiting_tokens:
                await asyncio.sleep(0.001)
        while batcher.num_waiting_tokens:
            await asyncio.sleep(0.001)
    assert counts(server) == {
        ("/v1/logprobs", CLIENT_DISCONNECTED): 1
    }  # the others were never started


async def test_stopping_waits_for_the_reply_in_progress(
    server: Server, policy: ServedModel
) -> None:
    asked = raw({"prefix": "a", "continuations": ["b"]}, path="/v1/logprobs")
    async with server.connection() as (reader, writer):
        with policy.hold():  # no reply until new connections are refused
            writer.write(asked)
            while not server.service.batcher.num_waiting_tokens:
                await asyncio.sleep(0.001)
            stopping = asyncio.create_task(server.http.stop())
            with pytest.raises(ConnectionError):
                await connect_until_refused(server)
        status, headers, _ = await answer(reader)
        await stopping
        assert (status, headers["connection"]) == (200, "close")
        assert await reader.read() == b""


async def connect_until_refused(server: Server) -> None:
    while True:
        async with server.connection():
            await asyncio.sleep(0.01)
