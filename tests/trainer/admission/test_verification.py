"""Verification: a result that does not answer the learner's own task fails it, with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from forethought import wire
from forethought.background import end
from forethought.config import load_settings
from forethought.conformance import task_fault
from forethought.errors import InvalidInput, Superseded
from forethought.queue.interface import Message, Stage
from forethought.queue.memory_broker import MemoryBroker
from forethought.run.journal import Journal, audit
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    VersionSpan,
)
from forethought.wire.v1 import reward_pb2
from services.reward.scoring import Scorer
from services.rollout.torch_engine import TorchEngine
from tests import faults, tiny
from trainer.admission.feed import TaskFeed
from trainer.admission.verification import Verification
from trainer.admission.work_in_flight import WorkInFlight

TRUNK = tuple(range(70, 82))
TASK = Task(
    0, 1, 0, 0, "rlp", "{}", Document("d", "s", TRUNK, entropies_N=(0.1,) * 12),
    (Position(4, TRUNK[4:5]), Position(9, TRUNK[9:10])),
    Prompting((), (tiny.OPEN_ID,), (tiny.CLOSE_ID,)),
    Sampling(3, 6, 0.8, (tiny.CLOSE_ID,)), seed=3, traceparent="00-1-1-01",
)  # fmt: skip


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> ScoredRollout:
    """Sampled and scored by real replicas; the first thought is (65, 66, CLOSE_ID)."""
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("model"))
    return asyncio.run(_truth(directory))


async def _truth(directory: Path) -> ScoredRollout:
    engine = TorchEngine(replica="rollout-a", device="cpu", max_batch_tokens=1000)
    await engine.load(tiny.manifest("policy"), directory)
    (sampled,) = await engine.generate([TASK])
    await engine.close()
    message = cast(Any, wire.codec)._rollout_to_proto(sampled)
    faults.tokens(65, 66, tiny.CLOSE_ID)(message)
    scorer = Scorer(
        tiny.serve(directory, "policy"), None, 400, objectives={"rlp"}, replica="reward-b"
    )
    (scored,) = scorer.score_rollouts([wire.decode_rollout(message.SerializeToString())])
    await scorer.close()
    assert scored.failure is None
    return scored


def in_flight(broker: MemoryBroker, task: Task = TASK, version: int = 0) -> WorkInFlight:
    """The work of a learner at ``version`` that has admitted ``task``."""
    settings = load_settings(None, ("learner.batch_tasks=1", "learner.steps=1"), {})
    feed = cast(TaskFeed, SimpleNamespace(next_task_id=0, take=lambda *_, **__: [task]))
    verification = Verification(tiny.VOCAB_SIZE, lambda: version)
    return WorkInFlight(broker, feed, settings.learner, verification)


async def received(
    body: bytes, task: Task = TASK, version: int = 0
) -> tuple[ScoredRollout, WorkInFlight]:
    """What the learner takes for its task after a replica answered with ``body``."""
    broker = MemoryBroker()
    work = in_flight(broker, task, version)
    await work.admit_after(0, epoch=task.epoch, version=task.min_version)
    broker.append(Stage.SCORED, _entry(Message(task.task_id, task.epoch, body)))
    intake = asyncio.create_task(work.intake(task.epoch))
    results = await asyncio.wait_for(work.take(0, asyncio.Event()), 10)
    await end([intake])
    assert results is not None
    (result,) = results
    return result, work


def _entry(message: Message) -> Any:
    from forethought.queue.memory_broker import _Entry

    return _Entry(message)  # as Redis would hold it: only our clients check the size


def altered(truth: ScoredRollout, change: Callable[[Any], object], part: str = "") -> bytes:
    """The message of a result with one change to it, or to a part of it."""
    message = reward_pb2.ScoredRollout.FromString(wire.encode_scored(truth))
    target = message
    for name in filter(None, part.split(".")):
        target = getattr(target, name)
    change(target)
    return message.SerializeToString()


FAULTS = [
    *((f"thoughts: {name}", "rollout", *rest) for name, *rest in faults.ROLLOUT_FAULTS),
    *((f"task: {name}", "rollout.task", *rest) for name, *rest in faults.TASK_FAULTS),
    *((f"scores: {name}", "", *rest) for name, *rest in faults.SCORE_FAULTS),
]


async def test_the_truth_counts_and_holds_the_learners_own_task(truth: ScoredRollout) -> None:
    result, work = await received(wire.encode_scored(truth))
    assert result.failure is None
    assert result.rollout.task is TASK
    assert (result.rewards_KG, work.num_refused) == (
        wire.decode_scored(wire.encode_scored(truth)).rewards_KG,
        0,
    )


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
async def test_a_lie_fails_its_task_and_says_why(
    truth: ScoredRollout,
    part: str,
    change: Callable[[Any], object],
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result, work = await received(altered(truth, change, part))
    assert reason in (result.failure or "")
    assert reason in caplog.text, "the first reason is logged"
    assert (result.rollout.task, result.rewards_KG, result.rollout.thoughts_KG) == (TASK, (), ())
    assert work.num_refused == 1
    Journal(tmp_path, 1).append(0, 1, [result])
    counts = audit(tmp_path, 1)
    assert (counts.num_failed, counts.num_trained, counts.num_lost) == (1, 0, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [fault[1:] for fault in faults.BODY_FAULTS],
    ids=[fault[0] for fault in faults.BODY_FAULTS],
)
async def test_a_body_that_is_no_result_fails_its_task_at_once(
    truth: ScoredRollout, change: Callable[[bytes], bytes], reason: str
) -> None:
    result, work = await received(change(wire.encode_scored(truth)))
    assert reason in (result.failure or "")
    assert (result.rollout.task, work.num_refused) == (TASK, 1)


async def test_a_failed_result_keeps_its_reason_but_no_thoughts_that_do_not_fit(
    truth: ScoredRollout,
) -> None:
    """Thoughts of a rollout that could not be scored are counted as work, so they must conform too."""
    sound = replace(truth, error="out of\x1b[2J memory" + "!" * 5000)
    result, work = await received(wire.encode_scored(sound))
    assert (result.failure or "").startswith("out of [2J memory!!!")
    assert len(result.failure or "") < 1100
    assert len(result.rollout.thoughts_KG) == 2
    assert work.num_refused == 0

    change = faults.thought("version_spans.0.version", 10**9)
    result, _ = await received(altered(sound, change, "rollout"))
    assert result.rollout.thoughts_KG == ()
    empty = ScoredRollout(Rollout(Task.unread(9, 9), error=""))
    result, _ = await received(wire.encode_scored(empty))
    assert (result.failure, result.rollout.task) == ("a replica gave no reason", TASK)


@pytest.mark.parametrize(
    ("sampled", "scored", "learner", "is_sound"),
    [(3, 3, 5, True), (4, 5, 5, True), (5, 4, 5, False), (2, 3, 5, False), (3, 6, 5, False)],
)
async def test_versions_lie_between_admission_and_the_learners(
    truth: ScoredRollout, sampled: int, scored: int, learner: int, is_sound: bool
) -> None:
    task = replace(TASK, min_version=3, max_staleness=1)
    thoughts_KG = tuple(
        tuple(replace(t, version_spans=(VersionSpan(sampled, len(t.token_ids_L)),)) for t in group)
        for group in truth.rollout.thoughts_KG
    )
    result = replace(
        truth,
        rollout=replace(truth.rollout, task=task, thoughts_KG=thoughts_KG),
        policy_version=scored,
        baseline_version=0,
    )
    taken, _ = await received(wire.encode_scored(result), task, learner)
    assert (taken.failure is None) is is_sound


@pytest.mark.parametrize(
    ("ids", "num_predicted", "is_sound"),
    [
        ((65, tiny.CLOSE_ID, 66, 67), 2, True),
        ((65, tiny.CLOSE_ID, tiny.EOS_ID), 1, True),
        ((65, tiny.CLOSE_ID, 66, tiny.EOS_ID), 2, True),
        ((65, tiny.CLOSE_ID, 66), 1, False),  # ends neither at its budget nor at a stop token
        ((65, tiny.CLOSE_ID, tiny.EOS_ID, 66), 2, False),  # goes on after one
        ((65, tiny.CLOSE_ID, 66, 67, 68), 3, False),
        ((65, tiny.CLOSE_ID), 0, False),
        ((65, tiny.CLOSE_ID, 66, 67), 1, False),  # the thought has tokens after its close
    ],
)
async def test_a_prediction_ends_at_its_budget_or_a_stop_token(
    truth: ScoredRollout, ids: tuple[int, ...], num_predicted: int, is_sound: bool
) -> None:
    sampling = replace(
        TASK.sampling, group_size=1, prediction_tokens=2, prediction_stop_ids=(tiny.EOS_ID,)
    )
    task = replace(TASK, positions_K=TASK.positions_K[:1], sampling=sampling, models=())
    one = truth.rollout.thoughts_KG[0][:1]
    rollout = replace(truth.rollout, task=task, thoughts_KG=(one,))
    scores = {"rewards_KG": ((1.0,),), "policy_logprobs_KG": ((),), "baseline_logprobs_K": (0.0,)}
    scored = replace(truth, rollout=rollout, **cast(Any, scores))
    body = altered(scored, faults.tokens(*ids, num_predicted=num_predicted), "rollout")
    result, _ = await received(body, task)
    assert (result.failure is None) is is_sound, result.failure


@pytest.mark.parametrize(
    ("ids", "closed", "is_sound"),
    [
        ((65, 70, 71), True, True),
        ((70, 70, 71), True, True),
        ((tiny.CLOSE_ID,), True, True),
        ((65, 70, 71), False, False),
        ((65, 71, 70), True, False),  # no stop, and before its budget
        ((65, 66, 67, 70), False, True),  # its budget ends within the sequence
        ((65, 66, 67, 71), True, False),
        ((70, 71, 65, 66), False, False),  # goes on after it
        ((65, 70, 71, 70, 71), True, False),
    ],
)
async def test_a_thought_ends_at_its_first_stop_sequence(
    truth: ScoredRollout, ids: tuple[int, ...], closed: bool, is_sound: bool
) -> None:
    sampling = replace(
        TASK.sampling, group_size=1, max_thought_tokens=4, stop_sequences=((70, 71),)
    )
    task = replace(TASK, positions_K=TASK.positions_K[:1], sampling=sampling, models=())
    one = truth.rollout.thoughts_KG[0][:1]
    rollout = replace(truth.rollout, task=task, thoughts_KG=(one,))
    scores = {"rewards_KG": ((1.0,),), "policy_logprobs_KG": ((),), "baseline_logprobs_K": (0.0,)}
    scored = replace(truth, rollout=rollout, **cast(Any, scores))
    body = altered(scored, faults.tokens(*ids, closed=closed), "rollout")
    result, _ = await received(body, task)
    assert (result.failure is None) is is_sound, result.failure


def test_an_empty_stop_sequence_is_a_fault_of_its_task() -> None:
    sampling = replace(TASK.sampling, stop_sequences=((70,), ()))
    fault = task_fault(replace(TASK, sampling=sampling), tiny.VOCAB_SIZE)
    assert fault is not None
    assert "has an empty stop sequence" in fault


async def test_a_result_of_an_epoch_not_taken_is_ignored(truth: ScoredRollout) -> None:
    """A replica that claims a newer epoch must not end the learner; a learner that took one does."""
    broker = MemoryBroker()
    work = in_flight(broker)
    await work.admit_after(0, epoch=await broker.new_epoch(1), version=0)
    body = wire.encode_scored(truth)
    await broker.put(Stage.SCORED, [Message(0, 99, body), Message(0, 1, body)])
    intake = asyncio.create_task(work.intake(1))
    assert await asyncio.wait_for(work.take(0, asyncio.Event()), 10)
    assert work.num_ignored == 1
    await broker.new_epoch(1)
    await broker.put(Stage.SCORED, [Message(0, 2, body)])
    with pytest.raises(Superseded):
        await asyncio.wait_for(intake, 10)


def test_a_weight_that_is_rounded_on_the_wire_is_no_difference(truth: ScoredRollout) -> None:
    """Entropies of 0.1 are float64 in the learner and float32 in a message; NaN equals nothing."""
    document = replace(TASK.document, entropies_N=(float("nan"),) * 12)
    task = replace(TASK, document=document)
    own = replace(truth, rollout=replace(truth.rollout, task=task))
    verification = Verification(tiny.VOCAB_SIZE, lambda: 0)
    assert verification.verified(Message(0, 1, wire.encode_scored(own)), task).rollout.task is task
    with pytest.raises(InvalidInput, match="differs from the admitted one in document"):
        verification.verified(Message(0, 1, wire.encode_scored(truth)), task)
