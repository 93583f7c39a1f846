"""Dynamic sampling: tasks without a learning signal are replaced in their batch; counts still balance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from forethought import estimators, objectives, wire
from forethought.background import end, first_failure
from forethought.config import load_settings
from forethought.config.sections import FilterSection
from forethought.errors import InvalidInput
from forethought.queue.interface import Broker, ConsumerOptions, Message, Stage
from forethought.queue.memory_broker import MemoryBroker
from forethought.run.journal import Journal, audit
from forethought.types import (
    Rollout,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
    attempt_of,
    next_attempt,
    original_of,
)
from tests.trainer.admission.test_feed import ABC, make_feed, untraced
from trainer.admission.replacement import Replacing
from trainer.admission.verification import Verification
from trainer.admission.work_in_flight import WorkInFlight
from trainer.assembly import models_needed
from trainer.batch.builder import BatchBuilder

FLAT, VARIED = (1.0, 1.0), (1.0, 0.0)
PAIRS = ("sampling.group_size=2",)
SOUND = Verification(vocabulary=100, newest_version=lambda: 6)
RECIPE = BatchBuilder(
    objectives.load("rpt"), estimators.load("group_std"), FilterSection(zero_variance=True)
)


def scored(task: Task, rewards_G: Sequence[float] | None) -> ScoredRollout:
    """A result with these rewards, or a failed one."""
    if rewards_G is None:
        return ScoredRollout(Rollout(task, error="lost"))
    version = task.min_version
    thought = Thought((7, 91), (-0.5, -0.5), (VersionSpan(version, 2),), closed=True)
    rollout = Rollout(task, ((thought,) * len(rewards_G),))
    logprobs_G = (-1.0,) * len(rewards_G)
    return ScoredRollout(rollout, (tuple(rewards_G),), (logprobs_G,), (-1.0,), version, version)


def replacing(max_rounds: int = 3) -> Replacing:
    return Replacing(RECIPE.keeps, max_rounds, epoch=1, version=6)


def ids(tasks: Sequence[Task]) -> list[int]:
    return [task.task_id for task in tasks]


def test_ids_say_what_they_replace_and_which_attempt_they_are() -> None:
    second = next_attempt(next_attempt(7))
    assert (original_of(second), attempt_of(second)) == (7, 2)
    assert (original_of(7), attempt_of(7)) == (7, 0)
    assert len({7, 8, next_attempt(7), next_attempt(8), second}) == 5
    assert second < 2**53  # whatever reads it as a double


def test_dapos_filter_keeps_groups_that_disagree() -> None:
    (task,) = make_feed().take(1, epoch=1, min_version=0)
    assert RECIPE.keeps(scored(task, (1.0, 0.0, 0.0)))
    assert not RECIPE.keeps(scored(task, (0.0, 0.0, 0.0)))  # all wrong
    assert not RECIPE.keeps(scored(task, (1.0, 1.0, 1.0)))  # all right


def test_only_the_newest_attempt_is_judged_and_failures_are_left() -> None:
    tasks = make_feed().take(4, epoch=1, min_version=0)
    results = [scored(t, r) for t, r in zip(tasks, (FLAT, VARIED, None, FLAT), strict=True)]
    wasted = replacing().wasted(results)
    assert ids(wasted) == [0, 3]
    again = make_feed().replace(wasted, epoch=1, min_version=6)
    results += [scored(again[0], VARIED), scored(again[1], FLAT)]
    assert ids(replacing().wasted(results)) == [next_attempt(3)]
    assert replacing(max_rounds=1).wasted(results) == []


def test_a_replacement_is_a_further_task_of_the_same_batch() -> None:
    feed = make_feed()
    tasks = feed.take(6, epoch=1, min_version=0)
    (other,) = feed.replace(tasks[4:5], epoch=1, min_version=5)
    assert (other.batch, other.min_version) == (tasks[4].batch, 5)
    assert other.task_id == next_attempt(4)
    assert other.document != tasks[4].document
    assert feed.next_task_id == 6
    twin = make_feed()
    twin.take(6, epoch=1, min_version=0)
    assert untraced(twin.replace(tasks[4:5], epoch=1, min_version=5)) == untraced([other])


Rewards = Callable[[Task], Sequence[float] | None]


async def serve(broker: Broker, rewards: Rewards) -> None:
    """A rollout and a reward replica in one, until cancelled."""
    consumer = broker.consumer(
        ConsumerOptions(
            stage=Stage.TASKS,
            result_stage=Stage.SCORED,
            name="all",
            lease_s=60.0,
            max_attempts=1,
            error_result=lambda message, reason: message,
        )
    )
    while True:
        for delivery in await consumer.receive(8, 0.05):
            task = wire.decode_task(delivery.message.body)
            body = wire.encode_scored(scored(task, rewards(task)))
            await consumer.finish(delivery, Message(task.task_id, task.epoch, body))


async def taken(
    rewards: Rewards, max_rounds: int = 3, batch: int = 0
) -> tuple[list[ScoredRollout], WorkInFlight]:
    """The results of a batch of 3 tasks, and the work still in flight."""
    settings = load_settings(None, ("learner.batch_tasks=3", "learner.max_staleness=1"), {})
    broker = MemoryBroker()
    work = WorkInFlight(
        broker, make_feed(ABC, *PAIRS, "learner.max_staleness=1"), settings.learner, SOUND
    )
    await work.admit_after(0, epoch=1, version=0)
    loops = [asyncio.create_task(serve(broker, rewards)), asyncio.create_task(work.intake(1))]
    taking = asyncio.create_task(work.take(batch, asyncio.Event(), replacing(max_rounds)))
    await first_failure(loops, main=taking)
    await end(loops)
    results = taking.result()
    assert results is not None
    return results, work


async def test_tasks_without_learning_signal_are_replaced() -> None:
    """Task 1 gives a signal at its second replacement, task 2 at once, task 0 never arrived."""

    def rewards(task: Task) -> Sequence[float] | None:
        if original_of(task.task_id) == 0:
            return None
        return FLAT if original_of(task.task_id) == 1 and attempt_of(task.task_id) < 2 else VARIED

    results, work = await taken(rewards)
    once = next_attempt(1)
    assert [r.rollout.task.task_id for r in results] == [0, 1, 2, once, next_attempt(once)]
    assert {r.rollout.task.batch for r in results} == {0}
    batch = RECIPE.build(results)
    assert len(batch.trees) == 2
    assert batch.metrics["dropped/zero_variance"] == 2
    assert work.num_admitted == 6  # of batches 0 and 1; replacements take no number
    assert {task.batch for task in work.outstanding} == {1}


async def test_rounds_are_bounded() -> None:
    results, _ = await taken(lambda task: FLAT, max_rounds=2)
    assert len(results) == 9
    assert RECIPE.build(results).trees == []


async def test_a_stop_between_rounds_loses_nothing() -> None:
    """A checkpoint then holds the replaced tasks and their replacements, and a resume continues there."""
    settings = load_settings(None, ("learner.batch_tasks=3",), {})
    broker = MemoryBroker()
    work = WorkInFlight(broker, make_feed(ABC, *PAIRS), settings.learner, SOUND)
    await work.admit_after(0, epoch=1, version=0)
    stop = asyncio.Event()
    seen: list[int] = []

    def rewards(task: Task) -> Sequence[float]:
        seen.append(task.task_id)
        if attempt_of(task.task_id):
            stop.set()
        return FLAT

    loops = [asyncio.create_task(serve(broker, rewards)), asyncio.create_task(work.intake(1))]
    taking = asyncio.create_task(work.take(0, stop, replacing(max_rounds=16)))
    await first_failure(loops, main=taking)
    await end(loops)
    assert taking.result() is None
    held = ids(work.outstanding)
    assert held[:3] == [0, 1, 2]
    assert len(held) > 3
    resumed = WorkInFlight(MemoryBroker(), make_feed(ABC, *PAIRS), settings.learner, SOUND)
    await resumed.resume(work.outstanding, work.num_admitted, epoch=2, version=0)
    assert ids(resumed.outstanding) == held
    results = [scored(task, FLAT) for task in resumed.outstanding]
    newest = ids(replacing(max_rounds=16).wasted(results))
    assert sorted(map(original_of, newest)) == [0, 1, 2]
    assert not {next_attempt(task_id) for task_id in newest} & set(held)


async def test_the_journal_balances(tmp_path: Path) -> None:
    results, _ = await taken(
        lambda task: VARIED if attempt_of(task.task_id) or task.task_id else FLAT
    )
    journal = Journal(tmp_path, epoch=1)
    journal.append(0, 1, results)
    counts = audit(tmp_path, 3)
    assert (counts.num_lost, counts.num_duplicated, counts.num_replaced) == (0, 0, 1)
    assert counts.num_trained == 4
    journal.append(1, 2, results[-1:])
    assert audit(tmp_path, 3).num_duplicated == 1
    assert audit(tmp_path, 4).num_lost == 1


def test_replacing_without_a_filter_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"replace_from_step is 500, but no filter drops"):
        load_settings(None, ("filter.replace_from_step=500",), {})
    words = ("filter.replace_from_step=500", "filter.zero_variance=true")
    assert load_settings(None, words, {}).filter.replace_rounds == 4


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ((), ()),
        (("filter.zero_variance=true",), ()),
        (("filter.min_logprob_std=0.3",), ("policy",)),
        (("objective.parameters={reward = 'dense'}",), ("prediction",)),
    ],
)
def test_a_filter_on_likelihoods_requests_them(
    words: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    settings = load_settings(None, words, {})
    parts = SimpleNamespace(
        settings=settings,
        objective=objectives.load("rpt", settings.objective.parameters),
        learner=SimpleNamespace(baseline=SimpleNamespace(exists=True)),
    )
    assert models_needed(cast(Any, parts)) == needed
