"""A queue to test: the memory broker, and the Redis broker with a real Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from forethought.queue import (
    Broker,
    Consumer,
    Delivery,
    Message,
    Stage,
)
from forethought.queue.interface import ConsumerOptions
from forethought.queue.memory_broker import MemoryBroker

LEASE_S = 0.15
EXPIRED_S = 0.2  # longer than a lease


@dataclass
class Bench:
    """A broker, with the test hooks that differ between implementations."""

    broker: Broker
    other_run: Broker
    pass_time: Callable[[float], Awaitable[None]]
    lose_everything: Callable[[], Awaitable[None]]

    def consumer(
        self,
        name: str = "a",
        stage: Stage = Stage.TASKS,
        result_stage: Stage | None = Stage.ROLLOUTS,
        max_attempts: int = 2,
        lease_s: float = LEASE_S,
    ) -> Consumer:
        return self.broker.consumer(
            ConsumerOptions(
                stage=stage,
                result_stage=result_stage,
                name=name,
                lease_s=lease_s,
                max_attempts=max_attempts,
                error_result=error_result,
            )
        )

    async def results(self) -> list[Message]:
        """Take all rollouts published so far off the stage."""
        learner = self.consumer("learner", Stage.ROLLOUTS, None)
        deliveries = await learner.receive(1000, 0)
        for delivery in deliveries:
            await learner.finish(delivery, None)
        return [delivery.message for delivery in deliveries]


def error_result(message: Message, reason: str) -> Message:
    return Message(message.task_id, message.epoch, f"error: {reason}".encode())


def task(task_id: int, body: bytes = b"task") -> Message:
    return Message(task_id, 1, body)


async def one(consumer: Consumer) -> Delivery:
    (delivery,) = await consumer.receive(10, 0)
    return delivery


def ids(deliveries: list[Delivery]) -> list[int]:
    return [delivery.message.task_id for delivery in deliveries]


def memory_bench() -> Bench:
    now_s = [0.0]
    broker = MemoryBroker(clock=lambda: now_s[0])

    async def pass_time(seconds: float) -> None:
        now_s[0] += seconds

    async def lose_everything() -> None:
        broker.lose_everything()

    return Bench(broker, MemoryBroker(), pass_time, lose_everything)
