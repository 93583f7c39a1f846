"""The rollout service's queue handler: a task that cannot be served fails alone, and says why."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from forethought import wire
from forethought.queue.interface import ConsumerOptions, Message, Stage
from forethought.queue.memory_broker import MemoryBroker
from forethought.replica.worker import Worker
from forethought.types import Document, Position, Prompting, Rollout, Sampling, Task
from forethought.wire.packing import pack_ids
from forethought.wire.v1 import rollout_pb2
from services.rollout.handler import RolloutHandler, error_result
from services.rollout.torch_engine import TorchEngine
from tests import tiny
from tests.faults import Fault, assign

UNSERVABLE: tuple[Fault, ...] = (
    ("no position", lambda t: t.ClearField("positions"), "no position to think at"),
    ("beyond the document", assign("positions.0.index", 13), "position at 13, its document 12"),
    ("empty prompt", lambda t: (t.prompting.Clear(), assign("positions.0.index", 0)(t)), "empty prompt"),
    ("id past the embeddings", assign("document.token_ids", pack_ids([10**6] * 12)), "token id 1000000"),
    ("target past the embeddings", assign("positions.0.target_ids", pack_ids([259])), "token id 259"),
    ("prompt past the embeddings", assign("prompting.head_ids", pack_ids([2**32 - 1])), "4294967295"),
    ("no thoughts", assign("sampling.group_size", 0), "requests 0 thoughts"),
    ("no budget", assign("sampling.max_thought_tokens", 0), "of at most 0 tokens"),
    ("huge G", assign("sampling.group_size", 2**32 - 1), "requests 4294967295 thoughts"),
    ("huge budget", assign("sampling.max_thought_tokens", 2**32 - 1), "up to 4294967295 tokens"),
    ("huge prediction", assign("sampling.prediction_tokens", 2**31), "expected at most 1048576"),
    ("longer than the model", assign("sampling.max_thought_tokens", 95), "the model takes 96"),
    ("temperature 0", assign("sampling.temperature", 0.0), "temperature 0.0"),
    ("temperature NaN", assign("sampling.temperature", math.nan), "temperature nan"),
    ("another release", assign("wire_version", 3), "speaks wire version 3"),
)  # fmt: skip


def make_task(task_id: int) -> Task:
    trunk = tuple(range(70, 82))
    return Task(
        task_id, 1, 0, 0, "rlp", "{}", Document("d", "s", trunk), (Position(4, trunk[4:5]),),
        Prompting((), (tiny.OPEN_ID,), (tiny.CLOSE_ID,)),
        Sampling(2, 6, 1.0, (tiny.CLOSE_ID,)), seed=3,
    )  # fmt: skip


async def served(directory: Path, messages: list[Message]) -> dict[int, Rollout]:
    """What a rollout replica publishes for the messages in its stream, by task id."""
    broker = MemoryBroker()
    await broker.put(Stage.TASKS, messages)
    engine = TorchEngine(replica="rollout-a", device="cpu", max_batch_tokens=1000)
    await engine.load(tiny.manifest("policy"), directory)
    options = (60.0, 1, error_result)
    consumer = broker.consumer(ConsumerOptions(Stage.TASKS, Stage.ROLLOUTS, "rollout", *options))
    reward = broker.consumer(ConsumerOptions(Stage.ROLLOUTS, None, "reward", 60.0, 1))
    flips = SimpleNamespace(wait_for_change=asyncio.Event().wait)
    worker = Worker(RolloutHandler(engine, cast(Any, flips)), consumer=consumer, max_batch_tasks=8)
    working = asyncio.create_task(worker.run())
    results: dict[int, Rollout] = {}
    async with asyncio.timeout(10):
        while len(results) < len(messages):
            for delivery in await reward.receive(8, 1.0):
                results[delivery.message.task_id] = wire.decode_rollout(delivery.message.body)
    worker.stop()
    await working
    await engine.close()
    return results


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("change", "reason"), [row[1:] for row in UNSERVABLE], ids=[row[0] for row in UNSERVABLE]
)
async def test_a_task_that_cannot_be_served_fails_alone(
    directory: Path, change: Callable[[Any], object], reason: str
) -> None:
    message = rollout_pb2.Task.FromString(wire.encode_task(make_task(4)))
    change(message)
    sound = Message(5, 1, wire.encode_task(make_task(5)))
    results = await served(directory, [Message(4, 1, message.SerializeToString()), sound])
    assert reason in (results[4].error or "")
    assert results[4].thoughts_KG == ()
    assert results[5].error is None


async def test_a_body_that_is_no_task_has_a_failed_result(directory: Path) -> None:
    results = await served(directory, [Message(4, 1, b"\xff" * 40), Message(5, 1, b"")])
    assert "40 bytes are not a Task message" in (results[4].error or "")
    assert "wire version 0" in (results[5].error or "")
    assert (results[4].task.task_id, results[4].task.epoch) == (4, 1)
