"""The metrics of gRPC calls, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forethought.errors import ForethoughtError
from forethought.rpc.calls import GrpcCalls
from forethought.rpc.server import start_grpc_server
from forethought.weights.grpc_weights import WeightsClient, WeightsServicer
from forethought.weights.receiver import WeightReceiver
from tests.fake_replica import CHUNK_BYTES, snapshot_of, until


class Replica:
    """A receiver whose ``apply`` can block or fail."""

    def __init__(self, staging: Path) -> None:
        self.calls = GrpcCalls()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None
        self.receiver = WeightReceiver("r", frozenset({"policy"}), staging, self.apply)

    async def apply(self, *_: object) -> None:
        if self.error:
            raise self.error
        await self.go_on.wait()

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        return {(key[1], key[2]): d.num_values for key, d in self.calls.seconds.items()}


@pytest.fixture
async def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path)


@asynccontextmanager
async def served(replica: Replica) -> AsyncIterator[str]:
    servicer = WeightsServicer(replica.receiver)
    server = await start_grpc_server([servicer], "127.0.0.1", 0, interceptors=[replica.calls])
    yield f"127.0.0.1:{server.port}"
    await server.stop()


async def test_calls_are_counted_by_method_and_code(replica: Replica) -> None:
    async with served(replica) as address, WeightsClient(address, CHUNK_BYTES) as client:
        await client.status(5)
        await client.status(5)
        await client.push(snapshot_of(1), weights_only=False, timeout_s=5)
        with pytest.raises(ForethoughtError):  # not newer
            await client.push(snapshot_of(1, content="other "), weights_only=False, timeout_s=5)
        replica.error = ZeroDivisionError()
        with pytest.raises(ForethoughtError):
            await client.push(snapshot_of(2), weights_only=False, timeout_s=5)
    assert {key[0] for key in replica.calls.seconds} == {"forethought.wire.v1.Weights"}
    assert replica.counts == {
        ("Status", "OK"): 2,
        ("Push", "OK"): 1,
        ("Push", "FAILED_PRECONDITION"): 1,
        ("Push", "INTERNAL"): 1,
    }
    applied = replica.receiver.applied["policy"]
    assert (applied.seconds.num_values, applied.num_bytes) == (1, len(snapshot_of(1).weights))


async def test_a_client_that_disconnects_is_counted_with_its_duration(replica: Replica) -> None:
    replica.go_on.clear()
    async with served(replica) as address, WeightsClient(address, CHUNK_BYTES) as client:
        with pytest.raises(ForethoughtError):
            await client.push(snapshot_of(1), weights_only=False, timeout_s=0.3)
        # Wait for the server to see the cancellation; otherwise it would still respond.
        await until(lambda: any(task.cancelling() for task in asyncio.all_tasks()))
        replica.go_on.set()
        await until(lambda: bool(replica.counts))
    assert replica.counts == {("Push", "CANCELLED"): 1}
    (seconds,) = replica.calls.seconds.values()
    assert 0.2 < seconds.total < 5


async def test_streams_and_methods_that_do_not_exist_are_left_out(replica: Replica) -> None:
    async with served(replica) as address, grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=5)
        await watch.read()
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await channel.unary_unary("/made.Up/Method")(b"", timeout=5)
        assert replica.counts == {}
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert replica.counts == {("Check", "OK"): 1}
