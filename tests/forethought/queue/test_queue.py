"""The queue's contract, tested on the memory broker and on the Redis broker with a real Redis."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from forethought.errors import InvalidInput, Unreachable
from forethought.queue import (
    MAX_VALUE_BYTES,
    DeadLetter,
    Message,
    Stage,
    StageDepth,
    connect,
    memory_broker,
    redis_consumer,
)
from forethought.queue.interface import ConsumerOptions
from forethought.queue.keys import MAX_DEAD_LETTERS
from forethought.queue.memory_broker import MemoryBroker
from forethought.queue.redis_broker import RedisBroker
from tests.brokers import EXPIRED_S, LEASE_S, Bench, error_result, ids, one, task


async def test_messages_arrive_in_order_and_unchanged(bench: Bench) -> None:
    messages = [Message(i, 3, bytes([i, 0, 255])) for i in range(100)]
    await bench.broker.put(Stage.TASKS, messages[:70])
    await bench.broker.put(Stage.TASKS, messages[70:])
    first = await bench.consumer("a").receive(60, 0)
    second = await bench.consumer("b").receive(60, 0)
    assert [d.message for d in first + second] == messages
    assert len(first) == 60


async def test_receive_waits_for_later_messages(bench: Bench) -> None:
    receiving = asyncio.create_task(bench.consumer().receive(1, 10))
    await asyncio.sleep(0.02)
    assert not receiving.done()
    await bench.broker.put(Stage.TASKS, [task(1)])
    assert ids(await receiving) == [1]


async def test_receive_gives_up_after_its_wait(bench: Bench) -> None:
    assert await bench.consumer().receive(1, 0.02) == []


async def test_finish_publishes_retires_and_counts_depths(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1), task(2), task(3)])
    consumer = bench.consumer()
    held = await consumer.receive(2, 0)
    assert (await bench.broker.depths())[Stage.TASKS] == StageDepth(waiting=1, pending=2)
    assert await consumer.finish(held[0], Message(1, 1, b"thoughts"))
    depths = await bench.broker.depths()
    assert depths[Stage.TASKS] == StageDepth(waiting=1, pending=1)
    assert depths[Stage.ROLLOUTS] == StageDepth(waiting=1, pending=0)
    assert await bench.results() == [Message(1, 1, b"thoughts")]


async def test_an_expired_lease_is_claimed_before_new_work(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1), task(2)])
    await bench.consumer("dead").receive(1, 0)
    assert ids(await bench.consumer("early").receive(1, 0)) == [2]
    await bench.broker.put(Stage.TASKS, [task(3)])
    await bench.pass_time(EXPIRED_S)
    assert ids(await bench.consumer("b").receive(1, 0)) == [1]


async def test_a_waiting_consumer_notices_an_expired_lease(redis_url: str) -> None:
    broker = RedisBroker(redis_url, f"test-{uuid.uuid4().hex}")
    bench = Bench(broker, broker, asyncio.sleep, broker.clear_work)
    await broker.put(Stage.TASKS, [task(1)])
    await bench.consumer("dead").receive(1, 0)
    async with asyncio.timeout(20):
        assert ids(await bench.consumer("b").receive(1, 30)) == [1]
    await broker.close()


async def test_every_expired_lease_of_a_long_list_is_claimed(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(i) for i in range(60)])
    await bench.consumer("dead").receive(1, 0)  # expires
    await bench.pass_time(EXPIRED_S)
    busy = bench.consumer("busy")
    assert len(await busy.receive(59, 0)) == 1  # the expired one
    held = await busy.receive(59, 0)
    assert len(held) == 59
    last = bench.consumer("last")
    await bench.pass_time(EXPIRED_S)
    await busy.renew(held[:58])
    claimed = [await last.receive(1, 0) for _ in range(2)]  # a sweep skips renewed leases
    assert sorted(i for deliveries in claimed for i in ids(deliveries)) == [0, 59]


async def test_renewing_keeps_a_lease(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    consumer = bench.consumer("a")
    delivery = await one(consumer)
    for _ in range(4):
        await bench.pass_time(LEASE_S / 2)
        assert await consumer.renew([delivery]) == [delivery]
    assert await bench.consumer("b").receive(1, 0) == []


async def test_renewing_does_not_steal_back(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1), task(2)])
    slow, quick = bench.consumer("slow"), bench.consumer("quick")
    held = await slow.receive(2, 0)
    await bench.pass_time(EXPIRED_S)
    claimed = await quick.receive(1, 0)
    lost = claimed[0].message.task_id
    kept = [d for d in held if d.message.task_id != lost]
    assert await slow.renew(held) == kept
    assert await quick.renew(claimed) == claimed


async def test_begin_after_a_lost_lease_counts_nothing(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    slow, quick = bench.consumer("slow"), bench.consumer("quick")
    delivery = await one(slow)
    await bench.pass_time(EXPIRED_S)
    claimed = await one(quick)
    assert await slow.begin(delivery) == 0
    assert await quick.begin(claimed) == 1


async def test_past_the_attempt_limit_dead_letter_and_error_result_come_together(
    bench: Bench,
) -> None:
    await bench.broker.put(Stage.TASKS, [task(1, b"poison"), task(2)])
    for num_attempts, name in enumerate(["first", "second"]):
        victim = bench.consumer(name, max_attempts=2)
        (delivery,) = await victim.receive(1, 0)
        assert delivery.message.task_id == 1
        assert delivery.num_earlier_attempts == num_attempts
        assert await victim.begin(delivery) == num_attempts + 1
        await bench.pass_time(EXPIRED_S)
    assert ids(await bench.consumer("third").receive(10, 0)) == [2]
    (letter,) = await bench.broker.dead_letters()
    assert (letter.stage, letter.message) == (Stage.TASKS, task(1, b"poison"))
    assert "2 attempts" in letter.reason
    (result,) = await bench.results()
    assert result == error_result(task(1), letter.reason)
    assert (await bench.broker.depths())[Stage.TASKS] == StageDepth(waiting=0, pending=1)


async def test_receiving_is_not_an_attempt(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    for i in range(4):
        assert ids(await bench.consumer(f"waiter-{i}", max_attempts=1).receive(1, 0)) == [1]
        await bench.pass_time(EXPIRED_S)
    assert await bench.broker.dead_letters() == []


async def test_releasing_requeues_at_once_and_is_not_an_attempt(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1, b"kept")])
    for i in range(4):
        consumer = bench.consumer(f"leaver-{i}", max_attempts=1)
        delivery = await one(consumer)
        assert delivery.message == task(1, b"kept")
        assert await consumer.begin(delivery) == 1
        await consumer.release(delivery)
    assert await bench.broker.dead_letters() == []
    assert (await bench.broker.depths())[Stage.TASKS] == StageDepth(waiting=1, pending=0)


async def test_releasing_keeps_the_attempts_of_others(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    crashed, leaver, last = bench.consumer("crashed"), bench.consumer("leaver"), bench.consumer("c")
    await crashed.begin(await one(crashed))
    await bench.pass_time(EXPIRED_S)
    delivery = await one(leaver)
    assert await leaver.begin(delivery) == 2
    await leaver.release(delivery)
    assert await last.begin(await one(last)) == 2


async def test_an_expired_lease_is_claimed_at_once_and_its_attempts_count(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1), task(2)])
    for num_attempts, name in enumerate(["first", "second"]):
        consumer = bench.consumer(name, lease_s=600)
        held = await consumer.receive(10, 0)
        begun = next(delivery for delivery in held if delivery.message.task_id == 1)
        assert begun.num_earlier_attempts == num_attempts
        assert await consumer.begin(begun) == num_attempts + 1
        await consumer.expire(held)
        assert sorted(ids(held)) == [1, 2]
    last = bench.consumer("last", lease_s=600)
    assert ids(await last.receive(10, 0)) == [2]
    assert [letter.message.task_id for letter in await bench.broker.dead_letters()] == [1]


async def test_another_consumers_lease_cannot_be_expired(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    slow, quick = bench.consumer("slow"), bench.consumer("quick")
    late = await one(slow)
    await bench.pass_time(EXPIRED_S)
    claimed = await one(quick)
    await slow.expire([late])
    await slow.expire([])
    assert await bench.consumer("third").receive(1, 0) == []
    assert await quick.renew([claimed]) == [claimed]


async def test_releasing_wakes_a_waiting_consumer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_broker, "_SLICE_S", 60.0)
    monkeypatch.setattr(redis_consumer, "MAX_BLOCK_S", 60.0)
    await bench.broker.put(Stage.TASKS, [task(1)])
    leaver = bench.consumer("leaver", lease_s=600)
    delivery = await one(leaver)
    receiving = asyncio.create_task(bench.consumer("b", lease_s=600).receive(1, 60))
    await asyncio.sleep(0.02)
    await leaver.release(delivery)
    async with asyncio.timeout(10):  # well before its next poll
        assert ids(await receiving) == [1]


async def test_releasing_after_a_lost_lease_has_no_effect(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    slow, quick = bench.consumer("slow"), bench.consumer("quick")
    delivery = await one(slow)
    await bench.pass_time(EXPIRED_S)
    claimed = await one(quick)
    await slow.release(delivery)
    assert await bench.consumer("third").receive(1, 0) == []
    assert await quick.renew([claimed]) == [claimed]


async def test_only_the_first_of_two_consumers_finishes(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    slow, quick = bench.consumer("slow"), bench.consumer("quick")
    late = await one(slow)
    await bench.pass_time(EXPIRED_S)
    claimed = await one(quick)
    outcomes = await asyncio.gather(
        slow.finish(late, Message(1, 1, b"slow")), quick.finish(claimed, Message(1, 1, b"quick"))
    )
    assert sorted(outcomes) == [False, True]
    assert len(await bench.results()) == 1


async def test_discarding_leaves_nothing_behind(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    consumer = bench.consumer()
    await consumer.discard(await one(consumer))
    await bench.pass_time(EXPIRED_S)
    assert await consumer.receive(1, 0) == []
    assert await bench.results() == []


async def test_without_an_error_result_only_the_dead_letter_is_written(bench: Bench) -> None:
    def refuse(message: Message, reason: str) -> Message:
        raise ValueError("cannot read this body")

    consumer = bench.broker.consumer(
        ConsumerOptions(
            stage=Stage.TASKS,
            result_stage=Stage.ROLLOUTS,
            name="a",
            lease_s=LEASE_S,
            max_attempts=1,
            error_result=refuse,
        )
    )
    await bench.broker.put(Stage.TASKS, [task(1)])
    delivery = await one(consumer)
    assert await consumer.bury(delivery, "unreadable")
    assert not await consumer.bury(delivery, "unreadable")
    assert await bench.broker.dead_letters() == [DeadLetter(Stage.TASKS, task(1), "unreadable")]
    assert await bench.results() == []


async def test_dead_letters_are_bounded(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(i) for i in range(MAX_DEAD_LETTERS + 5)])
    consumer = bench.consumer()
    for delivery in await consumer.receive(MAX_DEAD_LETTERS + 5, 0):
        await consumer.bury(delivery, "given up")
    letters = await bench.broker.dead_letters()
    assert len(letters) == MAX_DEAD_LETTERS
    assert letters[0].message.task_id == 5


async def test_large_values_are_refused(bench: Bench) -> None:
    largest, too_large = task(1, b"x" * MAX_VALUE_BYTES), task(2, b"x" * (MAX_VALUE_BYTES + 1))
    with pytest.raises(InvalidInput, match="1048577 bytes; expected at most 1048576; use fewer"):
        await bench.broker.put(Stage.TASKS, [largest, too_large])
    assert (await bench.broker.depths())[Stage.TASKS] == StageDepth(0, 0)
    await bench.broker.put(Stage.TASKS, [largest])
    consumer = bench.consumer()
    delivery = await one(consumer)
    with pytest.raises(InvalidInput, match="1048577"):
        await consumer.finish(delivery, too_large)
    assert await consumer.finish(delivery, largest)


async def test_contradicting_options_are_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="no error_result"):
        bench.broker.consumer(
            ConsumerOptions(
                stage=Stage.TASKS, result_stage=Stage.ROLLOUTS, name="a", lease_s=1, max_attempts=1
            )
        )
    with pytest.raises(InvalidInput, match="positive lease"):
        bench.broker.consumer(
            ConsumerOptions(
                stage=Stage.SCORED, result_stage=None, name="a", lease_s=0, max_attempts=1
            )
        )
    learner = bench.consumer("learner", Stage.SCORED, None)
    await bench.broker.put(Stage.SCORED, [task(1)])
    with pytest.raises(InvalidInput, match="no result stage"):
        await learner.finish(await one(learner), task(1))


async def test_lost_data_is_detected_and_recovered_from(bench: Bench) -> None:
    epoch = await bench.broker.new_epoch(7)
    life = await bench.broker.instance_id()
    assert await bench.broker.instance_id() == life
    await bench.broker.put(Stage.TASKS, [task(1), task(2)])
    consumer = bench.consumer()
    held = await consumer.receive(1, 0)
    await bench.lose_everything()

    assert await bench.broker.instance_id() != life
    assert await bench.broker.current_epoch() == 0
    assert await bench.broker.restore_epoch(epoch) == epoch
    assert await consumer.renew(held) == []
    assert await consumer.begin(held[0]) == 0
    assert not await consumer.finish(held[0], task(1))
    await consumer.release(held[0])

    await bench.broker.put(Stage.TASKS, [task(1), task(2)])
    again = await consumer.receive(10, 0)
    assert ids(again) == [1, 2]
    assert await consumer.finish(again[0], Message(1, 1, b"again"))
    assert await bench.results() == [Message(1, 1, b"again")]


async def test_a_waiting_consumer_survives_the_loss(bench: Bench) -> None:
    receiving = asyncio.create_task(bench.consumer().receive(1, 10))
    await asyncio.sleep(0.02)
    await bench.lose_everything()
    await bench.broker.put(Stage.TASKS, [task(1)])
    async with asyncio.timeout(20):
        assert ids(await receiving) == [1]


async def test_clear_work_ends_all_leases(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1), task(2), task(3)])
    consumer = bench.consumer(max_attempts=1)
    old = await consumer.receive(2, 0)
    await consumer.begin(old[0])
    await consumer.bury(old[1], "evidence")
    await bench.broker.clear_work()
    assert await bench.broker.depths() == dict.fromkeys(Stage, StageDepth(0, 0))
    assert len(await bench.broker.dead_letters()) == 1
    assert not await consumer.finish(old[0], task(1))
    assert await bench.results() == []


async def test_an_unreachable_redis_is_reported_without_its_password() -> None:
    broker = connect("redis://:secret@127.0.0.1:1/0", "run")
    with pytest.raises(Unreachable, match=r"redis://:\*\*\*@127.0.0.1:1/0 .* check that it runs"):
        await broker.ping()
    with pytest.raises(Unreachable):
        await broker.new_epoch(1)
    await broker.close()


def test_connect_knows_its_schemes() -> None:
    assert isinstance(connect("memory://", "run"), MemoryBroker)
    with pytest.raises(InvalidInput, match="expected redis://"):
        connect("localhost:6379", "run")
    with pytest.raises(InvalidInput, match="rename the run"):
        connect("redis://localhost", "a}b")
    with pytest.raises(InvalidInput, match="cannot be parsed"):
        connect("redis://localhost:port/0", "run")
