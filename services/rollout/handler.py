"""The rollout service's queue handler: tasks in, rollouts out.

Design: the handler decides when a task may be served (the ``min_version`` invariant) and knows nothing
about leases or batching; the engine samples and knows nothing about the queue.
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
        """A task waits for its epoch and ``min_version``; one of an earlier epoch is discarded.

        Raises:
            InvalidInput: the message is not a task.
        """
        task = wire.decode_task(message.body)
        return _readiness(self._engine.serving, (task.epoch, task.min_version))

    async def changed(self) -> None:
        """Return after the next flip."""
        await self._receiver.wait_for_change()

    async def handle(self, messages: list[Message]) -> list[Message]:
        """Sample all tasks of a batch."""
        rollouts = await self._engine.generate([wire.decode_task(m.body) for m in messages])
        return [_message(rollout) for rollout in rollouts]


def error_result(message: Message, reason: str) -> Message:
    """The error rollout for a task that could not be served.

    Raises:
        InvalidInput: the message is not a task.
    """
    return _message(Rollout(wire.decode_task(message.body), error=reason))


def _readiness(serving: WeightManifest | None, needed: tuple[int, int]) -> Readiness:
    if serving is None or serving.order < needed:
        return Readiness.WAIT
    return Readiness.DISCARD if serving.epoch > needed[0] else Readiness.READY


def _message(rollout: Rollout) -> Message:
    return Message(rollout.task.task_id, rollout.task.epoch, wire.encode_rollout(rollout))
