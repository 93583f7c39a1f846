"""Deliveries of a worker that is shut down, or whose engine dies, hangs or runs out of memory."""

from __future__ import annotations

import asyncio

import pytest

from forethought.errors import EngineHung, EngineLost
from forethought.queue import Broker, Consumer, Message, Stage
from forethought.replica.progress import Progress
from forethought.replica.worker import Worker
from tests.forethought.replica.test_worker import (
    Weights,
    broker,
    consumer_of,
    left,
    results,
    running,
    task,
    worker_of,
)

__all__ = ["broker"]  # a fixture

LONG_S = 600.0  # a lease that does not expire during a test


class Engine(Weights):
    """Dies or runs out of memory on some bodies."""

    async def handle(self, messages: list[Message]) -> list[Message]:
        answers = await super().handle(messages)
        bodies = [message.body for message in messages]
        if b"poison" in bodies:
            raise EngineLost("CUDA error: device-side assert triggered")
        if b"large" in bodies and len(bodies) > 1:
            raise MemoryError("out of memory")
        return answers


def consumer(broker: Broker, name: str, max_attempts: int = 3) -> Consumer:
    return consumer_of(broker, name, LONG_S, max_attempts)


async def test_three_shutdowns_in_a_batch_are_no_attempts(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1), task(2)])
    for name in ("first", "second", "third"):
        handler = Weights()
        handler.may_finish.clear()
        worker = worker_of(handler, consumer(broker, name, max_attempts=1))
        run = asyncio.create_task(worker.run())
        await handler.started.wait()
        worker.stop()
        run.cancel()  # the drain's time is over
        with pytest.raises(asyncio.CancelledError):
            await run
        assert left(worker) == {"released": 2}
    async with running(worker_of(Weights(), consumer(broker, "heir", max_attempts=1))):
        assert await results(broker, 2) == {1: b"done", 2: b"done"}
    assert await broker.dead_letters() == []


async def test_a_lost_engines_tasks_go_to_others_but_for_the_one_that_kills_engines(
    broker: Broker,
) -> None:
    await broker.put(Stage.TASKS, [task(1), task(2, b"poison"), task(3)])
    num_lost = 0
    async with asyncio.timeout(20):
        while not await broker.dead_letters():
            worker = worker_of(Engine(), consumer(broker, f"replica-{num_lost}"))
            try:
                async with running(worker) as run:
                    while not (run.done() or await broker.dead_letters()):
                        await asyncio.sleep(0.01)
            except EngineLost:
                num_lost += 1
    assert num_lost == 3
    answered = await results(broker, 3)
    assert answered.pop(2).startswith(b"error: 3 attempts begun and none finished")
    assert answered == {1: b"done", 3: b"done"}
    assert [letter.message.task_id for letter in await broker.dead_letters()] == [2]


async def test_what_does_not_fit_into_memory_together_is_handled_one_at_a_time(
    broker: Broker,
) -> None:
    await broker.put(Stage.TASKS, [task(1), task(2, b"large"), task(3)])
    handler = Engine()
    worker = worker_of(handler, consumer(broker, "a"))
    async with running(worker):
        assert await results(broker, 3) == dict.fromkeys((1, 2, 3), b"done")
    assert handler.batches == [[1, 2, 3], [1], [2], [3]]
    assert left(worker) == {"released": 3, "done": 3}


async def test_a_hung_engine_loses_its_leases(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1), task(2)])
    handler = Weights()
    handler.may_finish.clear()
    hung = worker_of(handler, consumer(broker, "hung"), progress=Progress(), hang_timeout_s=0.1)  # type: ignore[arg-type]
    with pytest.raises(
        EngineHung, match=r"2 tasks have not advanced for .*\(hang_timeout_s is 0.1\)"
    ):
        await hung.run()
    async with running(worker_of(Weights(), consumer(broker, "heir"))):
        assert await results(broker, 2) == {1: b"done", 2: b"done"}
    assert left(hung) == {"released": 2}


async def test_a_slow_engine_that_advances_is_not_hung(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1)])
    handler, progress = Weights(), Progress()
    handler.may_finish.clear()
    worker = Worker(
        handler,
        consumer=consumer(broker, "slow"),
        max_batch_tasks=4,
        wait_s=0.05,
        progress=progress,
        hang_timeout_s=0.5,
    )
    async with running(worker):
        await handler.started.wait()
        for _ in range(20):
            await asyncio.sleep(0.05)
            progress.note()
        handler.may_finish.set()
        assert await results(broker, 1) == {1: b"done"}
        await asyncio.sleep(0.7)  # idle, and not hung
