"""The rollout service's end of the queue: tasks in, rollouts out.

Design: the handler knows when a task may be served (the invariant of ``min_version``) and nothing about
leases or batching; the engine knows how to sample and nothing about the queue.
"""

from __future__ import annotations

from forethought import wire
from forethought.queue.interface import Message
from forethought.replica.worker import Readiness
from forethought.types import Rollout, WeightManifest
from forethought.weights.receiver import WeightReceiver
from services.rollout.engine import Engine


class RolloutHandler:
    """Serves tasks with an engine."""

    def __init__(self, engine: Engine, receiver: WeightReceiver) -> None:
        self._engine, self._receiver = engine, receiver

    def readiness(self, message: Message) -> Readiness:
        """A task waits for its epoch and ``min_version``; one of a dead epoch is nobody's.

        Raises:
            InvalidInput: the message is not a task.
        """
        task = wire.decode_task(message.body)
        return _verdict(self._engine.serving, (task.epoch, task.min_version))

    async def changed(self) -> None:
        """Return after the next flip."""
        await self._receiver.wait_for_change()

    async def handle(self, messages: list[Message]) -> list[Message]:
        """Sample all tasks of a batch."""
        rollouts = await self._engine.generate([wire.decode_task(m.body) for m in messages])
        return [_message(rollout) for rollout in rollouts]


def error_result(message: Message, reason: str) -> Message:
    """The rollout that stands in for one that could not be made.

    Raises:
        InvalidInput: the message is not a task.
    """
    return _message(Rollout(wire.decode_task(message.body), error=reason))


def _verdict(serving: WeightManifest | None, needed: tuple[int, int]) -> Readiness:
    if serving is None or serving.order < needed:
        return Readiness.WAIT
    return Readiness.DISCARD if serving.epoch > needed[0] else Readiness.READY


def _message(rollout: Rollout) -> Message:
    return Message(rollout.task.task_id, rollout.task.epoch, wire.encode_rollout(rollout))
