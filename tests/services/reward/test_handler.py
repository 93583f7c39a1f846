"""The reward service's queue handler: readiness, results, and waking up after a flip."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.compute.served_model import ServedModel
from forethought.errors import InvalidInput
from forethought.queue import Message
from forethought.replica.worker import Readiness
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    Task,
    Thought,
    VersionSpan,
)
from forethought.wire import decode_scored, encode_rollout
from services.reward.handler import RewardHandler, error_result
from services.reward.scoring import Scorer
from tests.tiny import CLOSE_ID, OPEN_ID, build_model_directory, manifest, serve


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
        (9, 1, Readiness.DISCARD),
        (0, 3, Readiness.WAIT),
    ],
)
def test_readiness_compares_with_the_served_version(
    directory: Path, version: int, epoch: int, readiness: Readiness
) -> None:
    scorer = Scorer(serve(directory, "policy", epoch=2, version=3), None, 400)
    message = message_of(make_rollout(version, epoch=epoch))
    assert RewardHandler(scorer).readiness(message) is readiness


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
