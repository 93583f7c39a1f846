"""What a broker keeps of a run beside its queue: epoch, watermark, registry, manifest; both brokers."""

from __future__ import annotations

import asyncio
from typing import Any

from forethought.queue import (
    Message,
    Stage,
    StageDepth,
    Watermark,
)
from forethought.queue.interface import ConsumerOptions
from forethought.types import Replica, next_attempt
from tests.brokers import LEASE_S, Bench, task


async def test_epochs_are_atomic(bench: Bench) -> None:
    taken = await asyncio.gather(*(bench.broker.new_epoch(5) for _ in range(20)))
    assert sorted(taken) == list(range(5, 25))
    assert await bench.broker.new_epoch(1) == 25
    assert await bench.broker.restore_epoch(3) == 25
    assert await bench.broker.current_epoch() == 25


async def test_the_watermark_rises_only_and_is_lost_with_the_data(bench: Bench) -> None:
    consumer = bench.consumer()
    assert await consumer.watermark() == Watermark(0, 0)
    for epoch, task_id in ((1, 8), (1, 4), (2, 0), (1, 99), (2, 12)):
        await bench.broker.raise_watermark(Watermark(epoch, task_id))
    assert await consumer.watermark() == Watermark(2, 12)
    await bench.broker.clear_work()
    assert await consumer.watermark() == Watermark(2, 12)
    await bench.lose_everything()
    assert await consumer.watermark() == Watermark(0, 0)
    await bench.broker.raise_watermark(Watermark(2, 8))
    assert await consumer.watermark() == Watermark(2, 8)


def test_a_replacement_is_as_old_as_the_task_it_replaces() -> None:
    watermark = Watermark(epoch=2, task_id=8)
    passed = [Message(7, 2, b""), Message(next_attempt(7), 2, b""), Message(90, 1, b"")]
    still_open = [Message(8, 2, b""), Message(next_attempt(8), 2, b""), Message(0, 3, b"")]
    assert all(map(watermark.has_passed, passed))
    assert not any(map(watermark.has_passed, still_open))


async def test_replicas_expire_by_the_brokers_clock(bench: Bench) -> None:
    a = Replica("a", "rollout", "10.0.0.1:50051", ("policy",), {"policy": (1, 12)}, 7)
    b = Replica("b", "reward", "10.0.0.2:50051", ("policy", "baseline"), draining=True)
    await bench.broker.announce(b, ttl_s=30)
    await bench.broker.announce(a, ttl_s=0.3)
    assert await bench.broker.replicas() == [a, b]
    await bench.pass_time(0.35)
    assert await bench.broker.replicas() == [b]
    await bench.broker.announce(a, ttl_s=30)
    await bench.broker.withdraw("b")
    assert await bench.broker.replicas() == [a]


async def test_the_manifest_is_kept(bench: Bench) -> None:
    assert await bench.broker.run() is None
    objective: dict[str, Any] = {"name": "rlp", "weights": [1.5, None]}
    await bench.broker.set_run(2, {"objective": objective})
    assert await bench.broker.run() == {"epoch": 2, "objective": objective}


async def test_a_superseded_learner_does_not_replace_the_manifest_of_its_successor(
    bench: Bench,
) -> None:
    """Its last one may be on its way while the next learner takes the run."""
    epoch = await bench.broker.new_epoch(1)
    await bench.broker.set_run(epoch, {"run_id": "a"})
    successor = await bench.broker.new_epoch(1)
    await bench.broker.set_run(successor, {"run_id": "b"})
    await bench.broker.set_run(epoch, {"run_id": "a"})
    assert await bench.broker.run() == {"run_id": "b", "epoch": successor}


async def test_runs_do_not_see_each_other(bench: Bench) -> None:
    await bench.broker.put(Stage.TASKS, [task(1)])
    await bench.broker.new_epoch(9)
    await bench.broker.set_run(9, {})
    await bench.broker.raise_watermark(Watermark(9, 1))
    await bench.broker.announce(Replica("a", "rollout", "h:1", ()), ttl_s=30)
    other = bench.other_run
    stranger = other.consumer(
        ConsumerOptions(
            stage=Stage.TASKS, result_stage=None, name="a", lease_s=LEASE_S, max_attempts=1
        )
    )
    assert await stranger.receive(1, 0) == []
    assert await stranger.watermark() == Watermark()
    assert await other.current_epoch() == 0
    assert await other.run() is None
    assert await other.replicas() == []
    await other.clear_work()
    assert (await bench.broker.depths())[Stage.TASKS] == StageDepth(1, 0)
