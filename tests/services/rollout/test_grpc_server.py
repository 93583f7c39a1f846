"""The rollout service's gRPC server on a real loopback port: a real engine, and one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from forethought.auth import Guard
from forethought.clients import AsyncRolloutClient, Generated, Retries
from forethought.clients.grpc_methods import METHODS
from forethought.clients.rollout_requests import GenerateRequest
from forethought.config.sections import RolloutSection
from forethought.errors import (
    ForethoughtError,
    InvalidInput,
    NotReady,
    Overloaded,
    Stale,
    Unreachable,
)
from forethought.queue.interface import ConsumerOptions, Message, Stage
from forethought.queue.memory_broker import MemoryBroker
from forethought.replica.host import ReplicaHost
from forethought.replica.worker import Worker
from forethought.types import Prompting, Rollout, Sampling, Task, Thought, WeightManifest
from forethought.wire.v1 import rollout_service_pb2 as pb
from forethought.wire.v1.rollout_service_pb2_grpc import RolloutsStub
from services.rollout.grpc_server import RolloutServicer
from services.rollout.handler import RolloutHandler, error_result
from services.rollout.limits import GenerateLimits
from services.rollout.torch_engine import TorchEngine
from tests import tiny
from tests.endpoints import grpc_endpoint, plain_logprobs
from tests.fake_replica import until

PREFIX, TEMPERATURE = (7, 20, 30, 40), 0.8
PROMPTING = Prompting(head_ids=(7,), bridge_ids=(10, tiny.OPEN_ID), close_ids=(tiny.CLOSE_ID, 11))
SAMPLING = Sampling(5, 8, TEMPERATURE, (tiny.CLOSE_ID, *range(0, tiny.NUM_BYTES, 9)))
ONCE = Retries(max_attempts=1)


class HangingEngine:
    """Never finishes; counts the waiting calls."""

    def __init__(self) -> None:
        self.num_asked = self.num_waiting = 0

    @property
    def serving(self) -> WeightManifest | None:
        return tiny.manifest("policy", version=5)

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        raise NotImplementedError

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        self.num_asked += 1
        self.num_waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.num_waiting -= 1
        raise AssertionError

    def refusal(self, task: Task) -> str | None:
        return None

    async def close(self) -> None:
        raise NotImplementedError


class FailingEngine(HangingEngine):
    """Accepts every request and fails: with an error in the rollout, or by raising."""

    def __init__(self, error: str | Exception) -> None:
        super().__init__()
        self._error = error

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        if isinstance(self._error, Exception):
            raise self._error
        return [Rollout(task, error=self._error) for task in tasks]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture
async def engine(directory: Path) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(replica="rollout-t", device="cpu", max_batch_tokens=1 << 16)
    await engine.load(tiny.manifest("policy", epoch=2, version=5), directory)
    yield engine
    await engine.close()


@pytest.fixture
async def address(engine: TorchEngine) -> AsyncIterator[str]:
    async with grpc_endpoint(RolloutServicer(engine, "rollout-t")) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncRolloutClient]:
    async with AsyncRolloutClient(f"grpc://{address}", retries=ONCE) as client:
        yield client


def assert_plain(generated: Generated, directory: Path, prefix: Sequence[int]) -> None:
    """The log-probs are those of a plain transformers computation."""
    for thought in generated.thoughts_G:
        plain = plain_logprobs(directory, prefix, thought.token_ids_L, temperature=TEMPERATURE)
        assert thought.behaviour_logprobs_L == pytest.approx(plain, abs=1e-5)


def ids_of(thoughts: Sequence[Thought]) -> list[tuple[int, ...]]:
    return [thought.token_ids_L for thought in thoughts]


async def test_thoughts_are_those_of_a_plain_computation(
    client: AsyncRolloutClient, directory: Path
) -> None:
    generated = await client.generate(SAMPLING, prefix_ids=PREFIX, seed=3)
    assert (generated.epoch, generated.replica) == (2, "rollout-t")
    assert len(generated.thoughts_G) == 5
    assert_plain(generated, directory, PREFIX)
    for thought in generated.thoughts_G:
        assert [span.version for span in thought.version_spans] == [5]
        assert sum(s.num_tokens for s in thought.version_spans) == len(thought.token_ids_L)
        assert thought.closed == (thought.token_ids_L[-1] in SAMPLING.stop_ids)


async def test_a_context_is_put_into_its_prompting(
    client: AsyncRolloutClient, directory: Path
) -> None:
    prompted = await client.generate(SAMPLING, context_ids=(20, 30), prompting=PROMPTING)
    whole = (7, 20, 30, 10, tiny.OPEN_ID)
    assert_plain(prompted, directory, whole)
    assert prompted == await client.generate(SAMPLING, prefix_ids=whole)


async def test_the_seed_decides(client: AsyncRolloutClient) -> None:
    first, again, other = [
        await client.generate(SAMPLING, prefix_ids=PREFIX, seed=seed) for seed in (1, 1, 2**64 - 1)
    ]
    assert first == again
    assert ids_of(first.thoughts_G) != ids_of(other.thoughts_G)


async def test_64_callers_at_once(client: AsyncRolloutClient, directory: Path) -> None:
    prefixes = [(n, n + 1, n + 2) for n in range(64)]
    answers = await asyncio.gather(
        *(client.generate(SAMPLING, prefix_ids=prefix) for prefix in prefixes)
    )
    for prefix, generated in zip(prefixes, answers, strict=True):
        assert_plain(generated, directory, prefix)


BAD: dict[str, dict[str, Any]] = {
    "the prefix is empty; expected": {},
    "expected either a whole prefix or": {"prefix_ids": PREFIX, "context_ids": (1,)},
    "got group_size 0": {"prefix_ids": PREFIX, "sampling": Sampling(0, 8)},
    "max_thought_tokens 0; expected": {"prefix_ids": PREFIX, "sampling": Sampling(2, 0)},
    "got temperature 0.0; expected": {"prefix_ids": PREFIX, "sampling": Sampling(2, 8, 0.0)},
    "got temperature nan; expected": {
        "prefix_ids": PREFIX,
        "sampling": Sampling(2, 8, float("nan")),
    },
    "token id 999": {"prefix_ids": (999,)},
    "tokens in all; split it into several": {
        "prefix_ids": PREFIX,
        "sampling": Sampling(1000, 2000),
    },
    "got group_size 32768; expected at most 1024": {
        "prefix_ids": PREFIX,
        "sampling": Sampling(1 << 15, 1),
    },
    "got 1025 stop tokens; expected at most 1024": {
        "prefix_ids": PREFIX,
        "sampling": Sampling(2, 8, stop_ids=tuple(range(1025))),
    },
    "1000 thoughts of 1508 tokens with their prefix": {
        "prefix_ids": (7,) * 1500,
        "sampling": Sampling(1000, 8),
    },
    "the model takes": {"prefix_ids": PREFIX * tiny.MAX_LENGTH_TOKENS},
    "prefix_ids holds -1; expected token ids": {"prefix_ids": (-1,)},
    "the request cannot be encoded": {"prefix_ids": PREFIX, "seed": -1},
}


@pytest.mark.parametrize("says", sorted(BAD))
async def test_bad_input_is_refused_with_a_clear_message(
    client: AsyncRolloutClient, says: str
) -> None:
    arguments = {"sampling": SAMPLING} | BAD[says]
    with pytest.raises(InvalidInput) as refused:
        await client.generate(**arguments)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        ("log-probs are not finite", grpc.StatusCode.INTERNAL, "log-probs are not finite"),
        (Unreachable("the engine died"), grpc.StatusCode.UNAVAILABLE, "the engine died"),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL, "internal error (RuntimeError)"),
    ],
)
async def test_a_fault_of_the_engine_is_not_blamed_on_the_caller(
    error: str | Exception, code: grpc.StatusCode, says: str
) -> None:
    question = METHODS["Generate"].encode(
        GenerateRequest(PREFIX, (), None, SAMPLING, seed=0, epoch=None, min_version=0)
    )
    async with (
        grpc_endpoint(RolloutServicer(FailingEngine(error), "r")) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await RolloutsStub(channel).Generate(question, timeout=10)  # type: ignore[no-untyped-call]
    assert failure.value.code() is code
    assert says in (failure.value.details() or "")


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (NotReady, {"min_version": 6}),
        (NotReady, {"epoch": 3}),
        (Stale, {"epoch": 1}),
        (Stale, {"epoch": 1, "min_version": 9}),
    ],
)
async def test_other_weights_than_are_served_are_refused(
    client: AsyncRolloutClient, kind: type[ForethoughtError], asked: dict[str, int]
) -> None:
    with pytest.raises(kind, match="this replica serves"):
        await client.generate(SAMPLING, prefix_ids=PREFIX, **asked)
    served = await client.generate(SAMPLING, prefix_ids=PREFIX, epoch=2, min_version=5)
    assert served.epoch == 2


async def test_a_client_waits_for_the_weights_it_asks_for(
    address: str, engine: TorchEngine, directory: Path
) -> None:
    async with AsyncRolloutClient(f"grpc://{address}") as client:
        asking = asyncio.create_task(
            client.generate(SAMPLING, prefix_ids=PREFIX, min_version=6, timeout_s=20)
        )
        await asyncio.wait((asking,), timeout=0.05)
        assert not asking.done()
        await engine.load(tiny.manifest("policy", epoch=2, version=6), directory)
        generated = await asking
    assert {thought.newest_version for thought in generated.thoughts_G} == {6}


async def test_before_the_first_weights_it_is_not_ready() -> None:
    engine = TorchEngine(replica="r", device="cpu", max_batch_tokens=1)
    async with (
        grpc_endpoint(RolloutServicer(engine, "r")) as address,
        AsyncRolloutClient(f"grpc://{address}", retries=ONCE) as client,
    ):
        with pytest.raises(NotReady, match="no policy weights yet"):
            await client.generate(SAMPLING, prefix_ids=PREFIX)
    await engine.close()


async def test_a_passed_deadline_and_a_cancelled_call_free_the_engine() -> None:
    engine = HangingEngine()
    async with (
        grpc_endpoint(RolloutServicer(engine, "r")) as address,
        AsyncRolloutClient(f"grpc://{address}") as client,
    ):
        with pytest.raises(Unreachable, match="no answer within"):
            await client.generate(SAMPLING, prefix_ids=PREFIX, timeout_s=0.2)
        await until(lambda: engine.num_waiting == 0)
        assert engine.num_asked == 1, "a passed deadline is not retried"
        asking = asyncio.create_task(client.generate(SAMPLING, prefix_ids=PREFIX))
        await until(lambda: engine.num_waiting == 1)
        asking.cancel()
        await until(lambda: engine.num_waiting == 0)
        assert engine.num_asked == 2


async def test_another_wire_version_is_refused(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await RolloutsStub(channel).Generate(  # type: ignore[no-untyped-call]
                pb.GenerateRequest(wire_version=7), timeout=10
            )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "speaks wire version 7, this process speaks 2; run the same" in str(refused.value)


async def services_at(address: str) -> set[str]:
    """The services that reflection lists."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), timeout=10)
        [reply] = [reply async for reply in call]
    return {service.name for service in reply.list_services_response.service}


async def test_reflection_lists_the_service(address: str) -> None:
    names = await services_at(address)
    assert {"forethought.wire.v1.Rollouts", "grpc.health.v1.Health"} <= names


async def test_a_replica_serves_it_next_to_weights_and_health(
    engine: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    broker, stop = MemoryBroker(), asyncio.Event()
    host = ReplicaHost(
        "rollout",
        "rollout-t",
        RolloutSection(heartbeat_s=0.02),
        "redis://127.0.0.1:1",
        broker,
        frozenset({"policy"}),
        engine.load,
        Guard(is_open=True),
        CollectorRegistry(),
        servicers=[RolloutServicer(engine, "rollout-t")],
    )
    consumer = broker.consumer(
        ConsumerOptions(
            stage=Stage.TASKS,
            result_stage=Stage.ROLLOUTS,
            name="rollout-t",
            lease_s=30,
            max_attempts=1,
            error_result=error_result,
        )
    )
    handler = RolloutHandler(engine, host.receiver)
    worker = Worker(handler, consumer=consumer, max_batch_tasks=1, wait_s=0.05)
    serving = asyncio.create_task(host.run(worker, stop))
    while not (registered := await broker.replicas()):
        await asyncio.wait((serving,), timeout=0.01)
        assert not serving.done()
    names = await services_at(registered[0].address)
    assert {f"forethought.wire.v1.{name}" for name in ("Rollouts", "Weights")} <= names
    async with AsyncRolloutClient(f"grpc://{registered[0].address}") as client:
        generated = await client.generate(SAMPLING, prefix_ids=PREFIX)
    assert len(generated.thoughts_G) == SAMPLING.group_size
    await until(lambda: f"waits for the learner of {broker.place}" in caplog.text)
    await hears_of_its_quarantine(broker, host, worker, caplog)
    stop.set()
    await serving


async def hears_of_its_quarantine(
    broker: MemoryBroker, host: ReplicaHost, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """From the run's manifest; it takes tasks again once a learner no longer says so."""
    task = Message(0, 0, b"no task, so it is buried as soon as it is taken")
    await broker.set_run(
        0, {"quarantined": {"rollout-t": "its numbers differ", "rollout-u": "too"}}
    )
    await until(lambda: host.describe()["quarantine"] == "its numbers differ")
    assert "its numbers differ; it takes no tasks" in caplog.text
    await broker.put(Stage.TASKS, [task])
    await asyncio.sleep(0.2)
    assert worker.num_buried == 0
    await broker.set_run(0, {"state": "training"})
    await until(lambda: worker.num_buried == 1)
    assert host.describe()["quarantine"] == ""


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_request_survives_the_wire(seed: int) -> None:
    body = GenerateRequest((1, 2), (), None, SAMPLING, seed, None, 3)
    request = METHODS["Generate"].encode(body)
    again = pb.GenerateRequest.FromString(request.SerializeToString())
    assert (again, again.seed, again.min_version) == (request, seed, 3)
    assert not again.HasField("epoch")
    assert METHODS["Generate"].encode(replace(body, epoch=0)).HasField("epoch")


async def test_requests_in_progress_are_limited_together() -> None:
    engine, limits = HangingEngine(), GenerateLimits(max_waiting_tokens=100)
    async with (
        grpc_endpoint(RolloutServicer(engine, "r", limits)) as address,
        AsyncRolloutClient(f"grpc://{address}", retries=ONCE) as client,
    ):
        asking = asyncio.create_task(client.generate(SAMPLING, prefix_ids=PREFIX))
        await until(lambda: engine.num_waiting == 1)
        with pytest.raises(Overloaded, match="for 60 tokens are in progress and this one adds 60"):
            await client.generate(SAMPLING, prefix_ids=PREFIX)
        asking.cancel()
        await until(lambda: engine.num_waiting == 0)
        asking = asyncio.create_task(client.generate(SAMPLING, prefix_ids=PREFIX))
        await until(lambda: engine.num_waiting == 1)
        asking.cancel()
        await asyncio.wait((asking,))
