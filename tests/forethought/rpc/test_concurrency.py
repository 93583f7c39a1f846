"""The limits of a gRPC server: calls of each service, bytes of a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forethought.clients import AsyncRewardClient, MatchItem, Retries
from forethought.errors import InvalidInput, Overloaded, TooLarge
from forethought.rpc.server import start_grpc_server
from forethought.weights.grpc_weights import WeightsClient, WeightsServicer
from forethought.weights.receiver import WeightReceiver

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    async def apply(*_: object) -> None:
        raise NotImplementedError

    receiver = WeightReceiver("r", frozenset({"policy"}), tmp_path, apply)
    server = await start_grpc_server(
        [WeightsServicer(receiver)], "127.0.0.1", 0, max_concurrent_calls=2
    )
    await server.set_ready(True)
    yield f"127.0.0.1:{server.port}"
    await server.stop()
    receiver.close()


async def test_each_service_has_a_limit_of_its_own(address: str) -> None:
    request = health_pb2.HealthCheckRequest()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        watching = [stub.Watch(request) for _ in range(2)]
        for watch in watching:
            assert (await watch.read()).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(request, timeout=5)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Watch(request).read()
        assert "2 calls of grpc.health.v1.Health are in progress" in str(refused.value.details())
        async with WeightsClient(address, 1024) as weights:
            assert await weights.status(5) == {}
        watching[0].cancel()

        async def is_served() -> bool:
            try:
                return bool((await stub.Check(request, timeout=5)).status == SERVING)
            except grpc.aio.AioRpcError:
                return False

        while not await is_served():
            await asyncio.sleep(0.005)
        watching[1].cancel()


async def test_a_call_counts_from_before_its_message(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        status = "/forethought.wire.v1.Weights/Status"
        silent = [channel.stream_unary(status)() for _ in range(2)]  # they send no message
        async with WeightsClient(address, 1024) as weights:

            async def is_refused() -> bool:
                try:
                    return not isinstance(await weights.status(5), dict)
                except Overloaded:
                    return True

            while not await is_refused():
                await asyncio.sleep(0.005)
            for call in silent:
                call.cancel()
            while await is_refused():
                await asyncio.sleep(0.005)


class Receiver:
    """A servicer of the Reward service that counts what reaches it."""

    service_name = "forethought.wire.v1.Reward"

    def __init__(self) -> None:
        self.num_bytes: list[int] = []

    def add_to(self, server: grpc.aio.Server) -> None:
        async def match(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.num_bytes.append(len(data))
            return data[:0]

        handlers = {"Match": grpc.unary_unary_rpc_method_handler(match)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self.service_name, handlers),)
        )


async def test_a_message_is_limited_as_decompressed_and_the_client_does_not_retry_it() -> None:
    receiver = Receiver()
    server = await start_grpc_server([receiver], "127.0.0.1", 0, max_message_bytes=100_000)
    address = f"127.0.0.1:{server.port}"
    async with AsyncRewardClient(f"grpc://{address}", retries=Retries(5)) as client:
        with pytest.raises(TooLarge, match=r"larger than max.*split the request"):
            await client.match([MatchItem("a", "a" * 100_000)], kind="exact")
        with pytest.raises(InvalidInput, match="wire version"):  # an empty reply
            await client.match([MatchItem("a", "a" * 90_000)], kind="exact")
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/forethought.wire.v1.Reward/Match")
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"a" * (16 << 20), compression=compression)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop()
    assert len(receiver.num_bytes) == 1
