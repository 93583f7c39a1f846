"""A replica for tests of the weights path: a real receiver behind a real gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from forethought.auth import Bearer, Guard
from forethought.rpc.guard import GrpcGuard
from forethought.rpc.server import GrpcServer, start_grpc_server
from forethought.types import Replica, WeightManifest
from forethought.weights.grpc_weights import WeightsClient, WeightsServicer
from forethought.weights.receiver import WeightReceiver
from forethought.weights.snapshot import (
    Snapshot,
    make_snapshot,
)

MODEL_FILES = {"config.json": b'{"vocab_size": 300}', "tokenizer.json": b"{}" * 600}
CHUNK_BYTES = 1024


def snapshot_of(
    version: int,
    *,
    epoch: int = 1,
    model: str = "policy",
    model_files=MODEL_FILES,
    content: str = "",
    run_id: str = "a" * 16,
) -> Snapshot:
    weights = f"{content}{model} {epoch} {version}\n".encode() * 500
    return make_snapshot(model, epoch, version, "float32", model_files, weights, run_id)


@dataclass
class FakeReplica:
    """A real receiver behind a real server that records the weights applied."""

    replica_id: str
    staging: Path
    models: frozenset[str] = frozenset({"policy"})
    idle_timeout_s: float = 30.0
    refuse: Exception | None = None
    owner: tuple[str, int] | None = None
    guard: Guard = field(default_factory=lambda: Guard(is_open=True))
    applied: list[tuple[WeightManifest, dict[str, bytes]]] = field(default_factory=list)

    async def apply(self, manifest: WeightManifest, directory: Path) -> None:
        if self.refuse is not None:
            raise self.refuse
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        self.applied.append((manifest, files))

    async def ask_owner(self) -> tuple[str, int] | None:
        return self.owner

    async def start(self, port: int = 0) -> None:
        self.receiver = WeightReceiver(
            self.replica_id,
            self.models,
            self.staging,
            self.apply,
            owner=self.ask_owner,
            idle_timeout_s=self.idle_timeout_s,
        )
        servicer = WeightsServicer(self.receiver)
        self.grpc_server: GrpcServer = await start_grpc_server(
            [servicer], "127.0.0.1", port, interceptors=[GrpcGuard(self.guard)]
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_server.port}"

    @property
    def entry(self) -> Replica:
        """The registration that its heartbeat would write."""
        serving = {model: held.order for model, held in self.receiver.holding.items()}
        models = tuple(sorted(self.models))
        policy = self.receiver.holding.get("policy")
        run_id = policy.run_id if policy else ""
        return Replica(self.replica_id, "rollout", self.address, models, serving, run_id=run_id)

    @property
    def orders(self) -> list[tuple[int, int]]:
        return [manifest.order for manifest, _ in self.applied]

    @property
    def staged(self) -> list[str]:
        return sorted(path.name for path in self.staging.rglob("*") if path.is_file())

    async def push(
        self, snapshot: Snapshot, *, weights_only: bool = False, bearer: Bearer | None = None
    ) -> WeightManifest:
        async with WeightsClient(self.address, CHUNK_BYTES, bearer) as client:
            return await client.push(snapshot, weights_only=weights_only, timeout_s=5)

    async def status(self, bearer: Bearer | None = None) -> dict[str, WeightManifest]:
        async with WeightsClient(self.address, CHUNK_BYTES, bearer) as client:
            return await client.status(5)


@asynccontextmanager
async def serving(replica: FakeReplica) -> AsyncIterator[FakeReplica]:
    await replica.start()
    try:
        yield replica
    finally:
        await replica.grpc_server.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Poll until ``condition`` holds; for states without an event."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
