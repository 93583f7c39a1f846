"""Tokens at real HTTP and gRPC servers: none, a wrong one, a client's and the run's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from forethought.auth import Bearer, Guard, Tokens, tokens
from forethought.auth.tokens import FileTokens
from forethought.clients import AsyncRewardClient, RewardClient
from forethought.config.sections import PublishSection
from forethought.errors import Forbidden, ForethoughtError, Unauthenticated
from forethought.wire.v1 import weights_pb2, weights_pb2_grpc
from tests.endpoints import RewardEndpoints, reward_endpoints
from tests.fake_replica import CHUNK_BYTES, FakeReplica, serving, snapshot_of
from tests.tiny import build_model_directory, serve
from trainer.publisher import Publisher

RUN, CLIENT = "the-run's-token", "a-client's-token"
HEALTH = health_pb2.HealthCheckRequest()


def guard_of(run: Tokens | None = None) -> Guard:
    return Guard(run or Tokens((RUN,)), Tokens((CLIENT,)))


def bearer_of(token: str | None) -> Bearer:
    return Bearer(Tokens(() if token is None else (token,)))


def headers_of(token: str | None) -> dict[str, str]:
    return dict(bearer_of(token).header())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_directory(tmp_path_factory.mktemp("model"))


def servers_of(directory: Path, guard: Guard) -> AbstractAsyncContextManager[RewardEndpoints]:
    return reward_endpoints(serve(directory, "policy"), serve(directory, "baseline"), guard=guard)


@pytest.fixture
async def endpoints(directory: Path) -> AsyncIterator[RewardEndpoints]:
    async with servers_of(directory, guard_of()) as opened:
        yield opened


@pytest.fixture
async def http(endpoints: RewardEndpoints) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=endpoints.urls["http"]) as client:
        yield client


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[FakeReplica]:
    async with serving(FakeReplica("rollout-a1", tmp_path, guard=guard_of())) as started:
        yield started


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the run's token; checked on every call."""
    monkeypatch.setattr(tokens, "LOOK_INTERVAL_S", 0.0)
    file = tmp_path / "token"
    file.write_text(f"{RUN}\n")
    return file


# HTTP


BAD_AUTHORIZATIONS = (
    *(None, "", "Bearer", "Bearer wrong"),
    *(f"Basic {RUN}", RUN, f"Bearer {RUN}x", "Bearer ü"),
)


@pytest.mark.parametrize("path", ["/v1/score", "/v1/match", "/v1/models", "/", "/nowhere"])
async def test_http_without_a_good_token_is_401(http: httpx2.AsyncClient, path: str) -> None:
    for authorization, method in product(BAD_AUTHORIZATIONS, ("GET", "POST")):
        headers = {} if authorization is None else {"authorization": authorization.encode()}
        reply = await http.request(method, path, headers=headers, content=b"{}")
        assert reply.status_code == 401, (authorization, method)
        assert reply.headers["www-authenticate"] == "Bearer"
        error = reply.json()["error"]
        assert error["status"] == 401
        assert "expected the header 'Authorization: Bearer TOKEN'" in error["message"]
        assert RUN not in reply.text


@pytest.mark.parametrize("authorization", [f"Bearer {RUN}", f"bearer {CLIENT}"])
async def test_http_with_either_token_answers(http: httpx2.AsyncClient, authorization: str) -> None:
    headers = {"authorization": authorization}
    models = await http.get("/v1/models", headers=headers)
    assert models.json()["policy"]["name"] == "policy"
    items = [{"id": 1, "prediction": "7", "truth": "7"}]
    match = await http.post("/v1/match", headers=headers, json={"kind": "exact", "items": items})
    assert match.json() == {"items": [{"id": 1, "match": True}]}
    assert (await http.get("/nowhere", headers=headers)).status_code == 404


async def test_the_pages_that_describe_the_service_are_open_and_name_the_scheme(
    http: httpx2.AsyncClient,
) -> None:
    assert (await http.get("/docs")).status_code == 200
    described = (await http.get("/openapi.json")).json()
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    operations = [o for path in described["paths"].values() for o in path.values()]
    assert len(operations) == 5
    for operation in operations:
        assert operation["security"] == [{"token": []}]
        assert "401" in operation["responses"]


async def test_http_refuses_before_the_body(endpoints: RewardEndpoints) -> None:
    """A response comes after the request headers alone, even if the body never arrives."""
    host, port = endpoints.urls["http"].removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/score HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n"
        b"expect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(5):
        assert await reader.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
    writer.close()
    await writer.wait_closed()


# gRPC


async def outcome(call: Any) -> str:
    try:
        async with asyncio.timeout(5):
            await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("token", "status", "push"),
    [
        (None, "UNAUTHENTICATED", "UNAUTHENTICATED"),
        ("wrong", "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (CLIENT, "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (RUN, "OK", "INVALID_ARGUMENT"),  # authorized, but it pushes nothing
    ],
)
async def test_weights_require_the_run_token(
    replica: FakeReplica, token: str | None, status: str, push: str
) -> None:
    async with grpc.aio.insecure_channel(replica.address) as channel:
        stub = weights_pb2_grpc.WeightsStub(channel)
        metadata = bearer_of(token).header()
        request = weights_pb2.StatusRequest(wire_version=1)
        assert await outcome(stub.Status(request, metadata=metadata)) == status
        assert await outcome(stub.Push(iter(()), metadata=metadata)) == push


@pytest.mark.parametrize("token", [None, "wrong", CLIENT])
async def test_a_push_is_refused_before_a_message_is_read(
    replica: FakeReplica, token: str | None
) -> None:
    """Only the call's headers are sent, and the stream stays open."""
    async with grpc.aio.insecure_channel(replica.address) as channel:
        call = weights_pb2_grpc.WeightsStub(channel).Push(metadata=bearer_of(token).header())
        async with asyncio.timeout(5):
            code = await call.code()
    assert code.name == ("PERMISSION_DENIED" if token == CLIENT else "UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("token", "kind"), [(None, Unauthenticated), ("wrong", Unauthenticated), (CLIENT, Forbidden)]
)
async def test_a_rejected_push_changes_nothing_and_status_gives_the_reason(
    replica: FakeReplica, token: str | None, kind: type[ForethoughtError]
) -> None:
    for _ in range(5):
        with pytest.raises(ForethoughtError, match=f"replica at {replica.address} answered"):
            await replica.push(snapshot_of(1), bearer=bearer_of(token))
        with pytest.raises(kind, match=f"replica at {replica.address} answered"):
            await replica.status(bearer_of(token))
    assert replica.receiver.holding == {}
    assert replica.staged == []
    assert (await replica.push(snapshot_of(1), bearer=bearer_of(RUN))).version == 1


async def test_health_is_open_and_reflection_is_closed(replica: FakeReplica) -> None:
    async with grpc.aio.insecure_channel(replica.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert await outcome(health.Check(HEALTH)) == "OK"
        watch = health.Watch(HEALTH)
        async with asyncio.timeout(5):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        for token, expected in ((None, "UNAUTHENTICATED"), (CLIENT, "OK"), (RUN, "OK")):
            call = stub.ServerReflectionInfo(iter([request]), metadata=bearer_of(token).header())
            assert await outcome(anext(aiter(call))) == expected


async def test_an_unknown_method_is_unimplemented_without_a_token(
    replica: FakeReplica,
) -> None:
    async with grpc.aio.insecure_channel(replica.address) as channel:
        call = channel.unary_unary("/forethought.wire.v1.Weights/Made.Up")(b"")
        assert await outcome(call) == "UNIMPLEMENTED"


# Clients


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_clients_send_their_token(
    endpoints: RewardEndpoints, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = endpoints.urls[transport]
    for token in (CLIENT, RUN):
        async with AsyncRewardClient(url, token=token) as client:
            assert (await client.models()).objectives == ("rlp",)
        with RewardClient(url, token=token) as blocking:
            assert (await asyncio.to_thread(blocking.models)).objectives == ("rlp",)
    monkeypatch.setenv("FORETHOUGHT_AUTH_CLIENT_TOKEN", CLIENT)
    async with AsyncRewardClient(url) as client:
        assert (await client.models()).objectives == ("rlp",)
    for wrong in ("wrong", ""):
        async with AsyncRewardClient(url, token=wrong) as client:
            with pytest.raises(Unauthenticated, match="expected the header 'Authorization"):
                await client.models(timeout_s=5)
        with (
            RewardClient(url, token=wrong) as blocking,
            pytest.raises(Unauthenticated, match="got no token" if not wrong else "not accepted"),
        ):
            await asyncio.to_thread(blocking.models)


# Rotation


async def test_a_token_is_rotated_in_its_file_without_a_restart(
    directory: Path, token_file: Path
) -> None:
    sender = Bearer(FileTokens(token_file))
    async with (
        servers_of(directory, guard_of(FileTokens(token_file))) as endpoints,
        httpx2.AsyncClient(base_url=endpoints.urls["http"]) as http,
    ):

        async def statuses(*shown: str) -> list[int]:
            replies = [await http.get("/v1/models", headers=headers_of(token)) for token in shown]
            return [reply.status_code for reply in replies]

        assert await statuses(RUN, "new") == [200, 401]
        token_file.write_text(f"{RUN}\n\n# the next one\nnew\n")
        assert await statuses(RUN, "new") == [200, 200]
        assert dict(sender.header()) == headers_of(RUN)
        swapped = token_file.with_name("swapped")  # as a mounted secret is replaced
        swapped.write_text("new\n")
        swapped.replace(token_file)
        assert await statuses(RUN, "new", CLIENT) == [401, 200, 200]
        assert dict(sender.header()) == headers_of("new")


async def test_a_publisher_goes_on_once_its_token_is_right(
    replica: FakeReplica, token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token_file.write_text("wrong\n")
    settings = PublishSection(retry_s=0.02, chunk_bytes=CHUNK_BYTES)

    async def registry() -> list[Any]:
        return [replica.entry]

    publisher = Publisher(registry, settings, 0.05, Bearer(FileTokens(token_file)))
    running = asyncio.create_task(publisher.run())
    publisher.publish(snapshot_of(1))
    with caplog.at_level(logging.WARNING):
        assert await publisher.wait_until_current(0.3) == ["rollout-a1"]
    assert "answered UNAUTHENTICATED: got a token that is not accepted here" in caplog.text
    token_file.write_text(f"{RUN}\nwrong\n")
    assert await publisher.wait_until_current(5) == []
    assert replica.orders == [(1, 1)]
    running.cancel()
    await asyncio.wait({running})


# Warnings


@pytest.mark.parametrize(
    ("host", "num_warnings"),
    [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 1), ("", 1), ("10.0.0.7", 1)],
)
def test_an_open_listener_reachable_from_other_hosts_is_logged_once(
    caplog: pytest.LogCaptureFixture, host: str, num_warnings: int
) -> None:
    guard_of().warn_if_exposed(host, "gRPC")
    assert not caplog.records
    Guard(is_open=True).warn_if_exposed(host, "gRPC")
    assert len(caplog.records) == num_warnings
