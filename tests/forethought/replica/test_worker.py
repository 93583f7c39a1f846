"""The worker loop on both brokers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from forethought.queue import MAX_VALUE_BYTES, Broker, Consumer, Message, Stage, Watermark, connect
from forethought.queue.interface import ConsumerOptions
from forethought.replica.handler import Readiness
from forethought.replica.worker import Worker
from forethought.replica.worker_counts import Activity
from forethought.types import next_attempt

LEASE_S = 0.3


class Weights:
    """A handler that handles message i once its version is i or newer, and fails on some."""

    def __init__(self, version: int = 100) -> None:
        self.version, self.epoch = version, 1
        self.batches: list[list[int]] = []
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.started = asyncio.Event()
        self._changed = asyncio.Condition()

    def readiness(self, message: Message) -> Readiness:
        if message.body == b"unreadable":
            raise ValueError("not a task")
        if message.epoch < self.epoch:
            return Readiness.FOREIGN
        return Readiness.READY if message.task_id <= self.version else Readiness.WAIT

    async def changed(self) -> None:
        async with self._changed:
            await self._changed.wait()

    async def publish(self, version: int) -> None:
        async with self._changed:
            self.version = version
            self._changed.notify_all()

    async def handle(self, messages: list[Message]) -> list[Message]:
        self.batches.append([message.task_id for message in messages])
        self.started.set()
        await self.may_finish.wait()
        if any(message.body == b"explode" for message in messages):
            raise ZeroDivisionError("no tokens")
        if any(message.body == b"short" for message in messages):
            return []
        return [answer(message) for message in messages]


def answer(message: Message) -> Message:
    if message.body == b"huge":
        return Message(message.task_id, message.epoch, b"x" * (MAX_VALUE_BYTES + 1))
    return Message(message.task_id, message.epoch, b"done")


def error_result(message: Message, reason: str) -> Message:
    return Message(message.task_id, message.epoch, f"error: {reason}".encode())


def task(task_id: int, body: bytes = b"task", epoch: int = 1) -> Message:
    return Message(task_id, epoch, body)


def consumer_of(
    broker: Broker, name: str = "a", lease_s: float = LEASE_S, max_attempts: int = 1
) -> Consumer:
    return broker.consumer(
        ConsumerOptions(
            stage=Stage.TASKS,
            result_stage=Stage.ROLLOUTS,
            name=name,
            lease_s=lease_s,
            max_attempts=max_attempts,
            error_result=error_result,
        )
    )


def worker_of(handler: Weights, consumer: Consumer, **options: float | None) -> Worker:
    return Worker(handler, consumer=consumer, max_batch_tasks=4, wait_s=0.05, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker for a block, then drain it; it must end by itself."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        async with asyncio.timeout(5):
            await task


async def results(broker: Broker, num: int) -> dict[int, bytes]:
    """The next ``num`` results by task id."""
    learner = broker.consumer(
        ConsumerOptions(
            stage=Stage.ROLLOUTS, result_stage=None, name="learner", lease_s=60, max_attempts=1
        )
    )
    bodies: dict[int, bytes] = {}
    async with asyncio.timeout(10):
        while len(bodies) < num:
            for delivery in await learner.receive(num, 1):
                assert delivery.message.task_id not in bodies
                bodies[delivery.message.task_id] = delivery.message.body
                await learner.finish(delivery, None)
    return bodies


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until ``condition`` holds; for states without an event."""
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], bool]) -> None:
    async def is_so() -> bool:
        return condition()

    await until(is_so)


async def holds(broker: Broker, num_pending: int) -> None:
    async def is_so() -> bool:
        return (await broker.depths())[Stage.TASKS].pending == num_pending

    await until(is_so)


def left(worker: Worker) -> dict[str, int]:
    """How many tasks left the worker, by outcome."""
    return {outcome.value: num for outcome, num in worker.counts.outcomes.items() if num}


@pytest.fixture(params=["memory", "redis"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    broker = connect(url, f"test-{uuid.uuid4().hex}")
    yield broker
    await broker.close()


async def test_serves_batches_in_order(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(i) for i in range(6)])
    handler = Weights()
    worker = worker_of(handler, consumer_of(broker))
    async with running(worker):
        assert await results(broker, 6) == dict.fromkeys(range(6), b"done")
    assert handler.batches == [[0, 1, 2, 3], [4, 5]]
    assert worker.num_done == 6
    assert left(worker) == {"done": 6}
    assert (worker.counts.deliveries, worker.counts.redeliveries, worker.num_held) == (6, 0, 0)
    assert worker.counts.batch_seconds.num_values == 2
    assert worker.counts.seconds[Activity.WAITING] == 0
    assert worker.counts.seconds[Activity.RECEIVING] > 0


async def test_waits_for_weights_without_spending_attempts(broker: Broker) -> None:
    """Longer than several leases, with one attempt allowed, while another consumer would claim."""
    await broker.put(Stage.TASKS, [task(3), task(5)])
    handler = Weights(version=2)
    thief = consumer_of(broker, "thief")
    async with running(worker_of(handler, consumer_of(broker), weights_timeout_s=60)):
        await holds(broker, 2)
        assert await thief.receive(10, 2 * LEASE_S) == []
        assert handler.batches == []
        await handler.publish(3)
        assert await results(broker, 1) == {3: b"done"}
        await handler.publish(5)
        assert await results(broker, 1) == {5: b"done"}
    assert handler.batches == [[3], [5]]
    assert await broker.dead_letters() == []


async def test_a_replica_that_lags_releases_its_work(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(3)])
    lagging, newest = Weights(version=2), Weights(version=3)
    behind = worker_of(lagging, consumer_of(broker, "lagging"), weights_timeout_s=0.1)
    async with running(behind):
        await holds(broker, 1)
        async with running(worker_of(newest, consumer_of(broker, "newest"))):
            assert await results(broker, 1) == {3: b"done"}
    assert (lagging.batches, newest.batches) == ([], [[3]])
    assert left(behind).keys() == {"released"}
    assert behind.counts.seconds[Activity.WAITING] >= 0.1


async def test_an_exception_becomes_an_error_result(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1, b"explode"), task(2)])
    worker = worker_of(Weights(), consumer_of(broker))
    async with running(worker):
        reason = b"error: ZeroDivisionError: no tokens"
        assert await results(broker, 2) == {1: reason, 2: reason}
        await broker.put(Stage.TASKS, [task(3)])
        assert await results(broker, 1) == {3: b"done"}
    assert worker.num_done == 3
    assert left(worker) == {"failed": 2, "done": 1}
    assert await broker.dead_letters() == []


async def test_a_misbehaving_handler_becomes_an_error_result_too(broker: Broker) -> None:
    worker = worker_of(Weights(), consumer_of(broker))
    async with running(worker):
        await broker.put(Stage.TASKS, [task(1, b"short")])
        assert (await results(broker, 1))[
            1
        ] == b"error: RuntimeError: the handler returned 0 results for 1 messages"
        await broker.put(Stage.TASKS, [task(2, b"huge")])
        assert b"expected at most 1048576" in (await results(broker, 1))[2]
        await broker.put(Stage.TASKS, [task(3, b"unreadable")])
        assert (await results(broker, 1))[3] == b"error: ValueError: not a task"
    assert [letter.message.task_id for letter in await broker.dead_letters()] == [2, 3]
    assert left(worker) == {"failed": 1, "buried": 2}
    assert worker.num_buried == 2


async def test_work_of_a_superseded_epoch_is_dropped(broker: Broker) -> None:
    await broker.raise_watermark(Watermark(1, 0))
    await broker.put(Stage.TASKS, [task(1, epoch=0), task(2)])
    handler = Weights()
    worker = worker_of(handler, consumer_of(broker))
    async with running(worker):
        assert await results(broker, 1) == {2: b"done"}
        await holds(broker, 0)
    assert handler.batches == [[2]]
    assert left(worker) == {"discarded": 1, "done": 1}


async def test_work_for_other_weights_is_handed_back_at_once(broker: Broker) -> None:
    """The weights here are of a later epoch than the run's: no task of the run may be lost on them."""
    await broker.put(Stage.TASKS, [task(1), task(2)])
    foreign, own = Weights(), Weights()
    foreign.epoch = 7
    lost = worker_of(foreign, consumer_of(broker, "foreign", lease_s=60))
    async with running(lost):
        await until_true(lambda: left(lost).get("released", 0) >= 4)
        assert (await broker.depths())[Stage.TASKS].waiting + lost.num_held == 2
        async with running(worker_of(own, consumer_of(broker, "own", lease_s=60))):
            assert await results(broker, 2) == {1: b"done", 2: b"done"}
    assert left(lost).keys() == {"released"}
    assert (foreign.batches, await broker.dead_letters()) == ([], [])


async def test_a_quarantined_worker_takes_nothing_and_hands_back_what_waits(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(i) for i in (1, 2)])
    handler = Weights(version=0)
    worker = worker_of(handler, consumer_of(broker, "unsound", lease_s=60), weights_timeout_s=60)
    async with running(worker):
        await holds(broker, 2)
        worker.quarantine(True)
        await holds(broker, 0)
        await handler.publish(2)
        async with running(worker_of(Weights(), consumer_of(broker, "sound", lease_s=60))):
            assert await results(broker, 2) == {1: b"done", 2: b"done"}
        assert (handler.batches, left(worker)) == ([], {"released": 2})
        await broker.put(Stage.TASKS, [task(2)])
        await asyncio.sleep(0.2)  # several rounds
        assert (await broker.depths())[Stage.TASKS].waiting == 1
        worker.quarantine(False)
        assert await results(broker, 1) == {2: b"done"}
    assert handler.batches == [[2]]
    assert await broker.dead_letters() == []


async def test_closed_work_is_dropped_on_arrival(broker: Broker) -> None:
    await broker.raise_watermark(Watermark(2, 4))
    epochs = [(9, 1), (3, 2), (next_attempt(3), 2), (4, 2), (next_attempt(4), 2)]
    await broker.put(Stage.TASKS, [task(task_id, epoch=epoch) for task_id, epoch in epochs])
    handler = Weights(version=1 << 41)
    worker = worker_of(handler, consumer_of(broker))
    async with running(worker):
        assert (await results(broker, 2)).keys() == {4, next_attempt(4)}
        await holds(broker, 0)
    assert left(worker) == {"discarded": 3, "done": 2}
    assert (await broker.depths())[Stage.TASKS].waiting == 0


async def test_work_closed_while_it_waits_for_weights_is_dropped(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(5), task(7)])
    handler = Weights(version=1)
    worker = worker_of(handler, consumer_of(broker, lease_s=60))
    async with running(worker):
        await holds(broker, 2)
        await broker.raise_watermark(Watermark(1, 7))
        await holds(broker, 1)
        await handler.publish(7)
        assert await results(broker, 1) == {7: b"done"}
    assert left(worker) == {"discarded": 1, "done": 1}


async def test_the_handler_is_cancelled_once_all_its_work_is_closed(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1), task(2)])
    handler = Weights()
    handler.may_finish.clear()
    worker = worker_of(handler, consumer_of(broker, lease_s=60))
    async with running(worker):
        await handler.started.wait()
        await broker.raise_watermark(Watermark(1, 3))
        await holds(broker, 0)  # although the handler would never have finished
        handler.may_finish.set()
        await broker.put(Stage.TASKS, [task(3)])
        assert await results(broker, 1) == {3: b"done"}
    assert left(worker) == {"discarded": 2, "done": 1}


async def test_the_open_part_of_the_work_is_finished(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1), task(2)])
    handler = Weights()
    handler.may_finish.clear()
    worker = worker_of(handler, consumer_of(broker, lease_s=60))
    async with running(worker):
        await handler.started.wait()
        await broker.raise_watermark(Watermark(1, 2))
        await until_true(lambda: worker.num_to_take == 2)  # it has seen it
        handler.may_finish.set()
        assert await results(broker, 1) == {2: b"done"}
        await holds(broker, 0)
    assert left(worker) == {"discarded": 1, "done": 1}


async def test_stop_drains(broker: Broker) -> None:
    """The current batch is finished, waiting deliveries are released at once, no more are received."""
    await broker.put(Stage.TASKS, [task(1), task(9), task(2)])
    handler = Weights(version=5)
    handler.may_finish.clear()
    worker = worker_of(handler, consumer_of(broker, lease_s=60))
    async with running(worker) as run:
        await handler.started.wait()
        await broker.put(Stage.TASKS, [task(3)])
        worker.stop()
        await asyncio.sleep(0.1)
        assert not run.done()
        handler.may_finish.set()
    assert handler.batches == [[1, 2]]
    assert await results(broker, 2) == {1: b"done", 2: b"done"}
    heir = consumer_of(broker, "heir", lease_s=60)
    assert [d.message.task_id for d in await heir.receive(10, 0)] == [3, 9]


async def test_stop_ends_the_wait_for_weights(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(9)])
    async with running(worker_of(Weights(version=1), consumer_of(broker, lease_s=60))):
        await holds(broker, 1)
    assert len(await consumer_of(broker, "heir", lease_s=60).receive(1, 0)) == 1


async def test_leases_are_renewed_while_working(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1)])
    handler = Weights()
    handler.may_finish.clear()
    worker = worker_of(handler, consumer_of(broker))
    async with running(worker):
        await handler.started.wait()
        assert await consumer_of(broker, "thief").receive(1, 2 * LEASE_S) == []
        handler.may_finish.set()
        assert await results(broker, 1) == {1: b"done"}
    assert worker.counts.renewals >= 2
    assert worker.counts.seconds[Activity.WORKING] >= 2 * LEASE_S


async def test_a_lost_lease_drops_the_delivery_waiting_on_it(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(5)])
    handler = Weights(version=1)
    worker = worker_of(handler, consumer_of(broker), weights_timeout_s=60)
    async with running(worker):
        await holds(broker, 1)
        await broker.clear_work()
        await broker.put(Stage.TASKS, [task(1)])  # received only once the loss is detected
        assert await results(broker, 1) == {1: b"done"}
        await handler.publish(5)
    assert handler.batches == [[1]]
    assert left(worker) == {"lost": 1, "done": 1}


async def test_a_result_after_the_lease_was_lost_counts_once(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1)])
    handler = Weights()
    handler.may_finish.clear()
    slow = consumer_of(broker, "slow", lease_s=60)
    worker = worker_of(handler, slow)
    async with running(worker):
        await handler.started.wait()
        quick = consumer_of(broker, "quick", lease_s=0.001, max_attempts=2)
        (claimed,) = await quick.receive(1, 1)
        assert await quick.finish(claimed, Message(1, 1, b"quick"))
        handler.may_finish.set()
    assert worker.num_done == 0
    assert left(worker) == {"lost": 1}
    assert await results(broker, 1) == {1: b"quick"}
    assert (await broker.depths())[Stage.ROLLOUTS].waiting == 0


async def test_a_redelivery_is_handled_on_its_own(broker: Broker) -> None:
    """If it kills its worker, no other delivery is lost with it."""
    await broker.put(Stage.TASKS, [task(1), task(2)])
    crashed = consumer_of(broker, "crashed", lease_s=0.05)
    for delivery in await crashed.receive(2, 0):
        await crashed.begin(delivery)
    handler = Weights()
    heir = consumer_of(broker, "heir", lease_s=0.05, max_attempts=2)
    worker = worker_of(handler, heir)
    async with running(worker):
        assert await results(broker, 2) == {1: b"done", 2: b"done"}
    assert handler.batches == [[1], [2]]
    assert worker.counts.redeliveries == 2


async def test_dead_letters_of_deliveries_out_of_attempts_are_counted(broker: Broker) -> None:
    await broker.put(Stage.TASKS, [task(1)])
    crashed = consumer_of(broker, "crashed", lease_s=0.05)
    for delivery in await crashed.receive(1, 0):
        await crashed.begin(delivery)
    worker = worker_of(Weights(), consumer_of(broker, "heir", lease_s=0.05, max_attempts=1))
    async with running(worker):
        assert (await results(broker, 1))[1].startswith(b"error: 1 attempts begun")
    assert (worker.num_buried, worker.counts.deliveries, left(worker)) == (1, 0, {})
