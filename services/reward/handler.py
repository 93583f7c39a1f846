"""The queue handler: rollouts in, scored rollouts out.

Design: this is only the handler; leases, retries and draining are the shared worker's
(:mod:`forethought.replica.worker`). A message has to be decoded to check its readiness, possibly many times
while it waits for weights, and again to score it, so decoded rollouts are cached by their bytes. The price
is the memory of that small cache.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path

from forethought.conformance import (
    newest_possible_version,
    rollout_fault,
    task_fault,
    versions_of,
)
from forethought.errors import InvalidInput
from forethought.queue import Message
from forethought.replica.handler import Readiness
from forethought.types import Rollout, ScoredRollout, Task, WeightManifest
from forethought.wire import decode_rollout, encode_scored
from services.reward.scoring import Scorer


class RewardHandler:
    """Implements the shared queue worker's ``Handler`` for the reward service.

    ``num_cached`` bounds the cache of decoded rollouts; it should be at least the worker's batch size.
    """

    def __init__(self, scorer: Scorer, num_cached: int = 64) -> None:
        self._scorer = scorer
        self._decode = lru_cache(maxsize=num_cached)(decode_rollout)
        self._changed = asyncio.Event()  # replaced at every change, so each wakes its waiters once

    def readiness(self, message: Message) -> Readiness:
        """READY once policy and baseline of the rollout's epoch are loaded, the policy at least as new.

        FOREIGN if the policy is of another run or a later epoch, otherwise WAIT. A failed rollout has no
        tokens and needs no version, and neither does one that does not conform to its task. A strictly
        on-policy rollout older than the served policy is READY too: scoring returns an error for it, as
        the learner expects one result per task.

        Raises:
            InvalidInput: the body is not a rollout of this wire version.
        """
        policy, baseline = self._scorer.policy.manifest, self._scorer.baseline
        rollout = self._decode(message.body)
        task, epoch = rollout.task, message.epoch
        if policy is None:
            return Readiness.WAIT
        if rollout.error is not None:
            return Readiness.READY
        if policy.run_id != task.run_id or policy.epoch > epoch:
            return Readiness.FOREIGN
        if policy.epoch < epoch:
            return Readiness.WAIT
        if self._checked(message).error is not None:
            return Readiness.READY
        if max(versions_of(rollout), default=0) > policy.version:
            return Readiness.WAIT
        wanted = baseline if "baseline" in task.models else None
        if wanted is not None and not _is_of(task, wanted.manifest):
            return Readiness.WAIT
        return Readiness.READY

    async def changed(self) -> None:
        """Return after the next :meth:`notify`."""
        await self._changed.wait()

    def notify(self) -> None:
        """Make the worker check readiness again. Call it on the event loop."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        """Flip the policy or the baseline to a verified snapshot, between two batches.

        Raises:
            InvalidInput: it cannot be loaded, or its model is not served here; the old version stays.
        """
        served = self._scorer.models.get(manifest.model)
        if served is None:
            raise InvalidInput(
                f"got weights of model {manifest.model!r}; this replica serves "
                f"{' and '.join(self._scorer.models)}; push only those"
            )
        await asyncio.to_thread(served.load, directory, manifest)
        self.notify()

    async def handle(self, messages: list[Message]) -> list[Message]:
        """Score a batch on the compute thread; one scored rollout per message, in order."""
        rollouts = [self._checked(message) for message in messages]
        scored = await self._scorer.run(self._scorer.score_rollouts, rollouts)
        return [
            Message(message.task_id, message.epoch, encode_scored(result))
            for message, result in zip(messages, scored, strict=True)
        ]

    def _checked(self, message: Message) -> Rollout:
        """The rollout in a message; a failed one if it does not conform to the task that it contains."""
        rollout = self._decode(message.body)
        if rollout.error is not None:
            return rollout
        if fault := _fault(message, rollout, self._scorer.policy.now.language_model.vocabulary):
            reason = f"the rollout of replica {rollout.replica!r} is invalid: {fault}"
            return Rollout(rollout.task, replica=rollout.replica, error=reason)
        return rollout


def _fault(message: Message, rollout: Rollout, vocabulary: int) -> str | None:
    task = rollout.task
    if (task.task_id, task.epoch) != (message.task_id, message.epoch):
        return (
            f"it is of task {task.task_id} in epoch {task.epoch}, expected task {message.task_id} in "
            f"epoch {message.epoch}"
        )
    newest_version = newest_possible_version(task)
    return task_fault(task, vocabulary) or rollout_fault(rollout, vocabulary, newest_version)


def _is_of(task: Task, manifest: WeightManifest | None) -> bool:
    return manifest is not None and manifest.origin == task.origin


def error_result(message: Message, reason: str) -> Message:
    """The result of a message that was given up on: its rollout, if it can be decoded, with the reason."""
    try:
        rollout = decode_rollout(message.body)
    except InvalidInput:
        rollout = Rollout(Task.unread(message.task_id, message.epoch))
    failed = ScoredRollout(rollout, error=reason)
    return Message(message.task_id, message.epoch, encode_scored(failed))
