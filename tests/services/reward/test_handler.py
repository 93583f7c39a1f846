"""The reward service's queue handler: readiness, results, and waking up after a flip."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.compute.served_model import ServedModel
from forethought.errors import InvalidInput
from forethought.queue import Message, Stage
from forethought.queue.interface import ConsumerOptions
from forethought.queue.memory_broker import MemoryBroker
from forethought.replica.handler import Readiness
from forethought.replica.worker import Worker
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from forethought.wire import decode_scored, encode_rollout
from forethought.wire.packing import pack_ids
from forethought.wire.v1 import rollout_pb2
from services.reward.handler import RewardHandler, error_result
from services.reward.scoring import Scorer
from tests import faults
from tests.tiny import CLOSE_ID, OPEN_ID, build_model_directory, manifest, serve

PAST = pack_ids([10**6])
OWN_FAULTS: tuple[faults.Fault, ...] = (
    ("beyond the document", faults.assign("task.positions.1.index", 13), "position at 13"),
    ("no position", lambda r: r.task.ClearField("positions"), "no position to think at"),
    ("empty prompt", lambda r: empty_prompt(r.task), "empty prompt"),
    ("target", faults.assign("task.positions.0.target_ids", PAST), "token id 1000000"),
    ("close", faults.assign("task.prompting.close_ids", PAST), "token id 1000000"),
    ("no temperature", faults.assign("task.sampling.temperature", math.nan), "temperature nan"),
    ("no thoughts", faults.assign("task.sampling.group_size", 0), "requests 0 thoughts"),
    ("no budget", faults.assign("task.sampling.max_thought_tokens", 0), "of at most 0 tokens"),
    ("another id", faults.assign("task.task_id", 9), "it is of task 9"),
    ("another epoch", faults.assign("task.epoch", 10**9), "in epoch 1000000000"),
)
"""Copies of the task that no replica can have been given: found without knowing the task."""


def make_rollout(version: int = 0, **changes: Any) -> Rollout:
    task = Task(
        task_id=4,
        epoch=1,
        batch=0,
        min_version=0,
        objective="rlp",
        objective_json="{}",
        document=Document("d#0", "d", (1, 2, 3, 4)),
        positions_K=(Position(2, (3,)),),
        prompting=Prompting((), (OPEN_ID,), (CLOSE_ID,)),
        sampling=Sampling(2, 5, 1.0, (CLOSE_ID,)),
        seed=1,
        max_staleness=2,
    )
    thoughts_G = tuple(
        Thought((i, CLOSE_ID), (-1.0, -1.0), (VersionSpan(version, 2),), True) for i in (7, 8)
    )
    return Rollout(replace(task, **changes), (thoughts_G,), "rollout-a")


def message_of(rollout: Rollout) -> Message:
    return Message(rollout.task.task_id, rollout.task.epoch, encode_rollout(rollout))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_directory(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("version", "epoch", "readiness"),
    [
        (3, 2, Readiness.READY),
        (1, 2, Readiness.READY),  # stale, which scoring reports
        (4, 2, Readiness.WAIT),
        (9, 1, Readiness.FOREIGN),
        (0, 3, Readiness.WAIT),
    ],
)
def test_readiness_compares_with_the_served_version(
    directory: Path, version: int, epoch: int, readiness: Readiness
) -> None:
    scorer = Scorer(serve(directory, "policy", epoch=2, version=3), None, 400)
    message = message_of(make_rollout(version, epoch=epoch))
    assert RewardHandler(scorer).readiness(message) is readiness


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_weights_of_another_run_score_nothing(directory: Path, epoch: int) -> None:
    policy = ServedModel("policy", "cpu")
    policy.load(directory, replace(manifest("policy", epoch=2, version=3), run_id="a" * 16))
    handler = RewardHandler(Scorer(policy, None, 400))
    for run_id, readiness in (("b" * 16, Readiness.FOREIGN), ("a" * 16, Readiness.READY)):
        rollout = make_rollout(3, epoch=epoch if run_id[0] == "b" else 2, run_id=run_id)
        assert handler.readiness(message_of(rollout)) is readiness


def test_readiness_waits_for_weights_and_for_the_baseline_of_the_epoch(directory: Path) -> None:
    policy, baseline = ServedModel("policy", "cpu"), ServedModel("baseline", "cpu")
    scorer = Scorer(policy, baseline, 400)
    handler, message = RewardHandler(scorer), message_of(make_rollout(epoch=2))
    assert handler.readiness(message) is Readiness.WAIT
    policy.load(directory, manifest("policy", epoch=2))
    assert handler.readiness(message) is Readiness.WAIT
    baseline.load(directory, manifest("baseline", epoch=1))
    assert handler.readiness(message) is Readiness.WAIT
    baseline.load(directory, manifest("baseline", epoch=2))
    assert handler.readiness(message) is Readiness.READY

    baseline.load(directory, manifest("baseline", epoch=1))
    assert handler.readiness(message) is Readiness.WAIT
    rollout = make_rollout(epoch=2)
    policy_only = replace(rollout, task=replace(rollout.task, models=("policy",)))
    assert handler.readiness(message_of(policy_only)) is Readiness.READY


def test_a_failed_rollout_needs_only_its_epoch(directory: Path) -> None:
    handler = RewardHandler(Scorer(serve(directory, "policy"), None, 400))
    failed = replace(make_rollout(), thoughts_KG=(), error="no memory")
    assert handler.readiness(message_of(failed)) is Readiness.READY


@pytest.mark.parametrize(
    ("change", "reason"),
    [fault[1:] for fault in (*faults.ROLLOUT_FAULTS, *OWN_FAULTS)],
    ids=[fault[0] for fault in (*faults.ROLLOUT_FAULTS, *OWN_FAULTS)],
)
async def test_a_rollout_that_does_not_conform_fails_alone(
    directory: Path, change: Callable[[Any], object], reason: str
) -> None:
    """Through a real worker: no replica ends, none waits for a version that cannot come."""
    scorer = Scorer(serve(directory, "policy"), None, 400, objectives={"rlp"}, replica="reward-b")
    message = rollout_pb2.Rollout.FromString(encode_rollout(two_groups()))
    change(message)
    sound = replace(two_groups(), task=replace(two_groups().task, task_id=5))
    results = await scored_by_worker(
        scorer, [Message(4, 1, message.SerializeToString()), message_of(sound)]
    )
    await scorer.close()
    assert reason in (results[4].failure or "")
    assert results[4].rewards_KG == ()
    assert results[5].failure is None


@pytest.mark.parametrize("change", [fault[1] for fault in faults.BODY_FAULTS[:3]])
async def test_a_body_that_is_no_rollout_has_a_failed_result(
    directory: Path, change: Callable[[bytes], bytes]
) -> None:
    scorer = Scorer(serve(directory, "policy"), None, 400, objectives={"rlp"})
    body = change(encode_rollout(two_groups()))
    results = await scored_by_worker(scorer, [Message(4, 1, body)])
    await scorer.close()
    assert "InvalidInput" in (results[4].failure or "")


def empty_prompt(task: Any) -> None:
    task.prompting.Clear()
    task.positions[0].index = 0


def two_groups() -> Rollout:
    """Two positions with three thoughts each, the first of them (65, 66, CLOSE_ID), at S = 0."""
    rollout = make_rollout(
        max_staleness=0,
        document=Document("d#0", "d", tuple(range(70, 82))),
        positions_K=(Position(4, (74,)), Position(9, (79,))),
        sampling=Sampling(3, 6, 1.0, (CLOSE_ID,)),
    )
    thought = Thought((65, 66, CLOSE_ID), (-1.0,) * 3, (VersionSpan(0, 3),), True)
    return replace(rollout, thoughts_KG=((thought,) * 3,) * 2)


async def scored_by_worker(scorer: Scorer, messages: list[Message]) -> dict[int, ScoredRollout]:
    """What a reward replica publishes for messages in its stream, by task id."""
    broker = MemoryBroker()
    await broker.put(Stage.ROLLOUTS, messages)
    options = (60.0, 1, error_result)
    consumer = broker.consumer(ConsumerOptions(Stage.ROLLOUTS, Stage.SCORED, "reward", *options))
    learner = broker.consumer(ConsumerOptions(Stage.SCORED, None, "learner", 60.0, 1))
    worker = Worker(RewardHandler(scorer), consumer=consumer, max_batch_tasks=8)
    working = asyncio.create_task(worker.run())
    results: dict[int, ScoredRollout] = {}
    async with asyncio.timeout(10):
        while len(results) < len(messages):
            for delivery in await learner.receive(8, 1.0):
                results[delivery.message.task_id] = decode_scored(delivery.message.body)
    worker.stop()
    await working
    return results


def test_the_readiness_of_an_invalid_body_raises(directory: Path) -> None:
    handler = RewardHandler(Scorer(serve(directory, "policy"), None, 400))
    with pytest.raises(InvalidInput):
        handler.readiness(Message(1, 1, b"\xff\xff\xff"))


async def test_results_come_in_order_one_per_message(directory: Path) -> None:
    scorer = Scorer(serve(directory, "policy"), None, 400, objectives={"rlp"}, replica="reward-b")
    good = make_rollout()
    unknown = make_rollout(task_id=5, objective="rpt")
    failed = replace(make_rollout(task_id=6), thoughts_KG=(), error="no memory")
    messages = [message_of(rollout) for rollout in (good, unknown, failed)]

    results = await RewardHandler(scorer).handle(messages)
    await scorer.close()

    assert [result.task_id for result in results] == [4, 5, 6]
    scored = [decode_scored(result.body) for result in results]
    assert scored[0].failure is None
    assert len(scored[0].rewards_KG[0]) == 2
    assert "loaded at start: rlp" in (scored[1].failure or "")
    assert scored[2].failure == "no memory"


async def test_loading_weights_wakes_waiters_for_a_change(directory: Path) -> None:
    scorer = Scorer(ServedModel("policy", "cpu"), None, 400)
    handler, message = RewardHandler(scorer), message_of(make_rollout(version=1))
    for version, readiness in ((0, Readiness.WAIT), (1, Readiness.READY)):
        changed = asyncio.ensure_future(handler.changed())
        await asyncio.sleep(0)
        assert not changed.done()
        await handler.load(manifest("policy", version=version), directory)
        await asyncio.wait_for(changed, 5)
        assert handler.readiness(message) is readiness
    with pytest.raises(InvalidInput, match="serves policy; push only those"):
        await handler.load(manifest("baseline"), directory)


def test_an_error_result_carries_its_rollout_and_the_reason() -> None:
    rollout = make_rollout()
    scored = decode_scored(error_result(message_of(rollout), "3 attempts").body)
    assert scored.failure == "3 attempts"
    assert scored.rollout.task == rollout.task
