"""Batches under a deadline, on replicas that are just fast enough, too slow, or away for a while.

The queue, the workers and the learner's side are the real ones; sampling takes a fixed time per task, on a
virtual clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import pytest

from forethought import wire
from forethought.background import end
from forethought.config.sections import LearnerSection
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
    attempt_of,
    next_attempt,
)
from tests import virtual_time
from trainer.admission.feed import TaskFeed
from trainer.admission.replacement import Replacing
from trainer.admission.verification import Verification
from trainer.admission.work_in_flight import WorkInFlight

N = 20
TIMEOUT_S = 1.0
NUM_BATCHES = 40
SOUND = Verification(vocabulary=50, newest_version=lambda: 0)


class Feed:
    """Tasks by id, without a corpus."""

    next_task_id = 0

    def take(self, num_tasks: int, *, epoch: int, min_version: int) -> list[Task]:
        first, self.next_task_id = self.next_task_id, self.next_task_id + num_tasks
        return [self._task(i, i // N, epoch) for i in range(first, self.next_task_id)]

    def replace(self, tasks: Sequence[Task], *, epoch: int, min_version: int) -> list[Task]:
        return [self._task(next_attempt(task.task_id), task.batch, epoch) for task in tasks]

    def adopt(self, tasks: Sequence[Task], *, epoch: int, min_version: int) -> list[Task]:
        return [replace(task, epoch=epoch) for task in tasks]

    def _task(self, task_id: int, batch: int, epoch: int) -> Task:
        return Task(
            task_id, epoch, batch, 0, "rlp", "{}", Document("d", "s", (5, 6, 7)),
            (Position(1, (6,)),), Prompting((), (39,), (40,)), Sampling(2, 3), seed=1,
        )  # fmt: skip


@dataclass
class Slow:
    """A handler that takes a fixed time per task; it publishes nothing before the last one is done."""

    task_s: float
    result: Callable[[Message], bytes]
    is_frozen: bool = False

    def readiness(self, message: Message) -> Readiness:
        return Readiness.READY

    async def changed(self) -> None:
        await asyncio.Event().wait()

    async def handle(self, messages: list[Message]) -> list[Message]:
        while self.is_frozen:
            await asyncio.sleep(0.1)
        await asyncio.sleep(self.task_s * len(messages))
        return [Message(m.task_id, m.epoch, self.result(m)) for m in messages]


def sampled(message: Message) -> bytes:
    thought = Thought((7, 7, 7), (-1.0,) * 3, (VersionSpan(0, 3),), closed=False)
    return wire.encode_rollout(Rollout(wire.decode_task(message.body), ((thought, thought),)))


def scored(message: Message) -> bytes:
    rollout, scores = wire.decode_rollout(message.body), ((-1.0, -1.0),)
    return wire.encode_scored(ScoredRollout(rollout, scores, scores, (-1.0,)))


class Simulation:
    """One rollout and one reward replica, and the learner's side of a run."""

    def __init__(self, batch_s: float, max_batch_tasks: int, max_staleness: int) -> None:
        self.broker = MemoryBroker(asyncio.get_running_loop().time)
        self.section = LearnerSection(
            batch_tasks=N, max_staleness=max_staleness, task_timeout_s=TIMEOUT_S, steps=NUM_BATCHES
        )
        self.work = WorkInFlight(self.broker, cast(TaskFeed, Feed()), self.section, SOUND)
        self.rollout = Slow(batch_s / N, sampled)
        self.workers = [
            self._worker(self.rollout, Stage.TASKS, Stage.ROLLOUTS, max_batch_tasks),
            self._worker(Slow(0.0, scored), Stage.ROLLOUTS, Stage.SCORED, max_batch_tasks),
        ]

    async def useful_results(self, replacing: Replacing | None = None) -> list[int]:
        """How many tasks of each batch came back in time."""
        await self.work.resume((), 0, epoch=1, version=0)
        await self.work.admit_after(0, epoch=1, version=0)
        loops = [worker.run() for worker in self.workers] + [self.work.intake(1)]
        background = [asyncio.create_task(loop) for loop in loops]
        num_useful = []
        for batch in range(NUM_BATCHES):
            results = await self.work.take(batch, asyncio.Event(), replacing)
            assert results is not None
            num_useful.append(sum(result.failure is None for result in results))
            await self.work.admit_after(batch + 1, epoch=1, version=0)
        await end(background)
        return num_useful

    def _worker(self, handler: Slow, stage: Stage, result_stage: Stage, max_tasks: int) -> Worker:
        def error_result(message: Message, reason: str) -> Message:
            raise AssertionError(reason)

        options = ConsumerOptions(stage, result_stage, stage.value, 30.0, 3, error_result)
        consumer = self.broker.consumer(options)
        return Worker(handler, consumer=consumer, max_batch_tasks=max_tasks)


def useful_results(batch_s: float, max_batch_tasks: int = 8, max_staleness: int = 1) -> list[int]:
    async def simulate() -> list[int]:
        return await Simulation(batch_s, max_batch_tasks, max_staleness).useful_results()

    return virtual_time.run(simulate())


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("max_batch_tasks", [1, 8, 20])
def test_enough_capacity_loses_nothing(max_batch_tasks: int, max_staleness: int) -> None:
    assert useful_results(0.8, max_batch_tasks, max_staleness) == [N] * NUM_BATCHES


def test_a_replica_that_takes_several_batches_together_learns_not_to() -> None:
    """It samples four batches in 3.2 s, so none of them is in time at first."""
    useful = useful_results(0.8, max_batch_tasks=80, max_staleness=3)
    assert useful[0] == 0
    assert sum(useful[10:]) >= 0.9 * N * (NUM_BATCHES - 10)


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize(("batch_s", "at_least"), [(1.25, 7.5), (2.5, 3.7), (10.0, 0.8)])
@pytest.mark.parametrize("max_batch_tasks", [1, 8, 20, 64])
def test_too_little_capacity_gives_a_steady_share(
    max_batch_tasks: int, batch_s: float, at_least: float, max_staleness: int
) -> None:
    useful = useful_results(batch_s, max_batch_tasks, max_staleness)[10:]  # once it has adapted
    first, last = sum(useful[:15]) / 15, sum(useful[15:]) / 15
    assert min(first, last) >= at_least
    assert useful.count(0) <= 2
    assert first == pytest.approx(last, rel=0.3), "it neither falls nor rises"


def test_a_run_recovers_from_replicas_that_were_away() -> None:
    async def simulate() -> list[int]:
        simulation = Simulation(0.8, 8, 1)
        loop = asyncio.get_running_loop()
        loop.call_later(4.0, setattr, simulation.rollout, "is_frozen", True)
        loop.call_later(9.0, setattr, simulation.rollout, "is_frozen", False)
        return await simulation.useful_results()

    useful = virtual_time.run(simulate())
    assert useful[:4] == [N] * 4
    assert 0 in useful
    assert useful[20:] == [N] * (NUM_BATCHES - 20)


def test_replacements_have_time_although_later_batches_are_ahead_of_them() -> None:
    def keeps(result: ScoredRollout) -> bool:
        task_id = result.rollout.task.task_id
        return attempt_of(task_id) > 0 or task_id % 4 > 0

    async def simulate() -> list[int]:
        simulation = Simulation(0.7, 4, 1)
        return await simulation.useful_results(Replacing(keeps, 2, epoch=1, version=0))

    assert virtual_time.run(simulate()) == [N + N // 4] * NUM_BATCHES


def test_dropped_work_is_counted_and_leaves_the_queue() -> None:
    async def simulate() -> Simulation:
        simulation = Simulation(2.5, 4, 1)
        await simulation.useful_results()
        return simulation

    simulation = virtual_time.run(simulate())
    outcomes = simulation.workers[0].counts.outcomes
    assert outcomes["discarded"] > N
    assert outcomes["done"] + outcomes["discarded"] >= N * (NUM_BATCHES - 1)
    assert outcomes["failed"] == outcomes["lost"] == 0
