"""The rollout service's queue handler: tasks in, rollouts out.

Design: the handler decides when a task may be served (the ``min_version`` invariant) and knows nothing
about leases or batching; the engine samples and knows nothing about the queue.
"""

from __future__ import annotations

from forethought import wire
from forethought.errors import InvalidInput
from forethought.queue.interface import MAX_VALUE_BYTES, Message
from forethought.replica.handler import Readiness
from forethought.types import Rollout, Task, WeightManifest
from forethought.weights.receiver import WeightReceiver
from services.rollout.engine import Engine

_BYTES_PER_SAMPLED_TOKEN = 8  # its id and its log-prob on the wire


class RolloutHandler:
    """Serves tasks with an engine."""

    def __init__(self, engine: Engine, receiver: WeightReceiver) -> None:
        self._engine, self._receiver = engine, receiver

    def readiness(self, message: Message) -> Readiness:
        """A task waits for its epoch and ``min_version``; weights of another run or a later epoch are
        foreign to it.

        Raises:
            InvalidInput: the message is not a task.
        """
        task = wire.decode_task(message.body)
        return _readiness(self._engine.serving, task)

    async def changed(self) -> None:
        """Return after the next flip."""
        await self._receiver.wait_for_change()

    async def handle(self, messages: list[Message]) -> list[Message]:
        """Sample all tasks of a batch, except those whose rollouts would be too large to publish."""
        tasks = [wire.decode_task(message.body) for message in messages]
        faults = [_size_fault(task) for task in tasks]
        valid = [task for task, fault in zip(tasks, faults, strict=True) if fault is None]
        sampled = iter(await self._engine.generate(valid) if valid else ())
        return [
            _message(message, next(sampled) if fault is None else Rollout(task, error=fault))
            for message, task, fault in zip(messages, tasks, faults, strict=True)
        ]


def error_result(message: Message, reason: str) -> Message:
    """The error rollout for a task that could not be served, or not even be decoded."""
    try:
        task = wire.decode_task(message.body)
    except InvalidInput:
        task = Task.unread(message.task_id, message.epoch)
    return _message(message, Rollout(task, error=reason))


def _size_fault(task: Task) -> str | None:
    """Why a task's rollout could not be published, which would be known only after it was sampled."""
    num_thoughts = task.sampling.group_size * len(task.positions_K)
    num_bytes = num_thoughts * task.sampling.max_response_tokens * _BYTES_PER_SAMPLED_TOKEN
    if num_bytes > MAX_VALUE_BYTES:
        return (
            f"task {task.task_id} requests {num_thoughts} thoughts of up to "
            f"{task.sampling.max_response_tokens} tokens, {num_bytes} bytes; expected at most "
            f"{MAX_VALUE_BYTES}; lower sampling.group_size or sampling.max_thought_tokens"
        )
    return None


def _readiness(serving: WeightManifest | None, task: Task) -> Readiness:
    if serving is None:
        return Readiness.WAIT
    if serving.run_id != task.run_id or serving.epoch > task.epoch:
        return Readiness.FOREIGN
    is_newer = serving.order >= (task.epoch, task.min_version)
    return Readiness.READY if is_newer else Readiness.WAIT


def _message(task: Message, rollout: Rollout) -> Message:
    return Message(task.task_id, task.epoch, wire.encode_rollout(rollout))
