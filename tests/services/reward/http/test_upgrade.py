"""An offer to upgrade changes nothing: over raw sockets, pipelined and in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forethought.compute.served_model import ServedModel
from tests.services.reward.http.test_fast_path import Server, counts, request
from tests.tiny import build_model_directory, serve

SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
H2C = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQ")
LAST = request("yes", "connection: close")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    directory: Path = build_model_directory(tmp_path_factory.mktemp("model"), seed=1)
    return serve(directory, "policy", version=4)


@pytest.fixture
async def server(policy: ServedModel) -> AsyncIterator[Server]:
    server = Server(policy)
    await server.http.start()
    yield server
    await server.http.stop()
    await server.service.close()


def post(body: bytes, *headers: str, path: str = "/v1/match") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: x", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def offering(upgrade: str, *, path: str = "/v1/match") -> bytes:
    """A request whose body would be a request of its own, if it were read as one."""
    length = f"content-length: {len(SMUGGLED)}"
    return post(SMUGGLED, "connection: upgrade", f"upgrade: {upgrade}", length, path=path)


async def statuses(server: Server, *pieces: bytes) -> list[int]:
    """The statuses of all replies to what is sent, up to the end of the connection."""
    async with server.connection() as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)  # the server reads it, most often before the next one
        replies = (await reader.read()).split(b"HTTP/1.1 ")[1:]
    return [int(reply.split(maxsplit=1)[0]) for reply in replies]


@pytest.mark.parametrize("path", ["/v1/match", "/v1/match?x=1"], ids=["fast path", "asgi"])
@pytest.mark.parametrize("upgrade", ["x", "websocket", "h2c"])
async def test_the_body_after_an_upgrade_is_no_request(
    server: Server, upgrade: str, path: str
) -> None:
    assert await statuses(server, offering(upgrade, path=path) + LAST) == [400, 200]


async def test_an_upgrade_may_come_in_any_two_pieces(server: Server) -> None:
    whole = request("no", *H2C) + offering("x") + LAST
    for cut in range(1, len(whole)):
        assert await statuses(server, whole[:cut], whole[cut:]) == [200, 400, 200], cut
    assert set(counts(server)) == {("/v1/match", 200), ("/v1/match", 400)}


async def test_an_upgrade_may_come_byte_by_byte(server: Server) -> None:
    whole = offering("x") + LAST
    pieces = (whole[i : i + 1] for i in range(len(whole)))
    assert await statuses(server, *pieces) == [400, 200]


async def test_chunks_and_pages_after_an_upgrade_are_read(server: Server) -> None:
    offer = ("connection: upgrade", "upgrade: x")
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    page = post(b"", *offer).replace(b"POST /v1/match", b"GET /openapi.json")
    sent = page + post(chunked, *offer, "transfer-encoding: chunked") + page + LAST
    assert await statuses(server, sent) == [200, 400, 200, 200]


async def test_many_upgrades_are_answered_one_by_one(server: Server) -> None:
    assert await statuses(server, request("no", *H2C) * 300 + LAST) == [200] * 301


async def test_a_tunnel_is_refused_and_closed(server: Server) -> None:
    connect = b"CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n" + request("yes")
    assert await statuses(server, request("yes") + connect) == [200, 400]


async def test_a_broken_request_does_not_answer_an_earlier_one(server: Server) -> None:
    broken = b"no request\r\n\r\n"
    assert await statuses(server, request("yes") * 3 + broken) == [200] * 3 + [400]
    broken = post(b"no length\r\n", "transfer-encoding: chunked")
    assert await statuses(server, request("yes") * 3 + broken) == [200] * 3 + [400]
