"""What a queue is to the rest of Forethought: two protocols and the values they pass.

Design: delivery is at-least-once and a *lease* says who works on what. A lease ends by finishing,
by handing back, or by running out on the broker's clock; every change of hands is one atomic step
in the broker. The price: a result can be computed twice, and the learner's set of outstanding ids
decides which one counts (it must anyway, because Redis may lose everything).

An *attempt* is counted when work on a delivery begins, not when it is received: a task that waits
for newer weights, or is handed back on shutdown, has spent nothing. The broker's delivery counter
knows no such difference and is not used.

Nothing here loads redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from forethought.errors import InvalidInput
from forethought.types import Replica

log = logging.getLogger(__name__)

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

MAX_VALUE_BYTES = 1 << 20
"""The largest body of a message. Redis serves one command at a time: larger ones stall all."""


class Stage(StrEnum):
    """The three streams, in the order that data flows through them."""

    TASKS = "tasks"
    ROLLOUTS = "rollouts"
    SCORED = "scored"


@dataclass(frozen=True, slots=True)
class Message:
    """One unit of work, opaque to the queue apart from whose it is.

    Example:
        ``Message(task_id=70, epoch=1, body=encode_task(task))``
    """

    task_id: int
    epoch: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on loan to a consumer; ``entry_id`` names the loan.

    ``num_earlier_attempts`` counts what other consumers began on it and did not finish.

    Example:
        ``Delivery(Stage.TASKS, "1718000000000-0", message)``
    """

    stage: Stage
    entry_id: str
    message: Message
    num_earlier_attempts: int = 0


@dataclass(frozen=True, slots=True)
class StageDepth:
    """How many messages of a stage nobody holds, and how many are on loan.

    Example:
        ``StageDepth(waiting=12, pending=4)``
    """

    waiting: int
    pending: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up on, and why.

    Example:
        ``DeadLetter(Stage.TASKS, message, "3 attempts begun and none finished; ...")``
    """

    stage: Stage
    message: Message
    reason: str


ErrorResult: TypeAlias = Callable[[Message, str], Message]
"""Makes the result that takes the place of a failed message's: (message, reason) -> result."""


class Consumer(Protocol):
    """One worker's end of a stage. Every method may raise ``Unreachable``; all may be called again.

    All consumers of a stage must use the same ``lease_s``: it is the claimer's that judges.
    """

    @property
    def lease_s(self) -> float:
        """Seconds a delivery stays ours without being renewed."""

    @property
    def num_buried(self) -> int:
        """Dead letters that this consumer wrote."""

    def error_result(self, message: Message, reason: str) -> Message:
        """The result to finish a failed message with.

        Raises:
            InvalidInput: this consumer was made without a way to answer.
        """

    async def receive(self, max_items: int, wait_s: float) -> list[Delivery]:
        """Up to ``max_items`` deliveries: those whose lease ran out first, else new ones.

        Waits up to ``wait_s`` seconds for the first and returns an empty list when none came.
        Entries that ran out and have ``max_attempts`` attempts behind them are buried, not
        returned.
        """

    async def begin(self, delivery: Delivery) -> int:
        """Count an attempt; returns the attempts begun so far, this one included.

        0 means that the lease was lost: nothing was counted, and the work is another's.
        """

    async def renew(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Start the leases that are still ours anew and return those; the others are lost."""

    async def finish(self, delivery: Delivery, result: Message | None) -> bool:
        """Publish the result and retire the delivery, in one step.

        False, and nothing published, if it was retired before (by another consumer, by
        ``clear_work``, or by an earlier call whose answer got lost). A delivery whose lease was
        lost may still be finished: the first to finish wins.

        Raises:
            InvalidInput: the result is larger than ``MAX_VALUE_BYTES`` or there is nowhere to put
            it.
        """

    async def discard(self, delivery: Delivery) -> None:
        """Retire the delivery without a result."""

    async def release(self, delivery: Delivery) -> None:
        """Hand the delivery back for anyone to receive at once; an attempt we began is un-counted.

        It goes to the end of the line, where it wakes a waiting consumer. A lost lease is left
        alone.
        """

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """Give up: dead letter, error result and retirement in one step; False if retired before.

        Where not even an error result can be made (a body from a foreign release), there is only
        the dead letter, and the learner's deadline for the task answers instead.
        """


class Broker(Protocol):
    """A run's queues, epoch, manifest and replicas. Any method may raise ``Unreachable``."""

    async def put(self, stage: Stage, messages: Iterable[Message]) -> None:
        """Append messages in order. After ``Unreachable`` some may have been appended: put again.

        Raises:
            InvalidInput: a body is larger than ``MAX_VALUE_BYTES``; nothing was appended.
        """

    def consumer(
        self,
        *,
        stage: Stage,
        result_stage: Stage | None,
        name: str,
        lease_s: float,
        max_attempts: int,
        error_result: ErrorResult | None = None,
    ) -> Consumer:
        """A consumer of a stage; does no I/O.

        ``name`` must be unique among the live consumers of the stage: it is what a lease is checked
        against. ``error_result`` is needed wherever there is a ``result_stage``.

        Raises:
            InvalidInput: options that contradict each other.
        """

    async def new_epoch(self, at_least: int) -> int:
        """Take a new epoch, atomically: one more than the newest, and no less than ``at_least``."""

    async def restore_epoch(self, epoch: int) -> int:
        """Raise the run's epoch to ``epoch`` where Redis forgot it; returns the newest.

        More than ``epoch`` means that a newer learner owns the run. Idempotent.
        """

    async def current_epoch(self) -> int:
        """The newest epoch; 0 when none was taken, or when Redis lost its data."""

    async def instance_id(self) -> str:
        """A word that stays the same while no data can have been lost.

        It changes when Redis restarts (with, without or with old data), fails over, or is
        flushed. The learner compares it with the last one it saw; on a change it restores its
        epoch, sets the manifest again and puts its outstanding tasks again, all of which are
        idempotent.
        """

    async def clear_work(self) -> None:
        """Empty all stages, but not the dead letters; what is on loan can no longer be finished."""

    async def announce(self, replica: Replica, ttl_s: float) -> None:
        """Register a replica, or renew it, for ``ttl_s`` seconds of the broker's clock."""

    async def withdraw(self, replica_id: str) -> None:
        """Remove a replica from the registry."""

    async def replicas(self) -> list[Replica]:
        """The replicas whose registration has not expired, by id."""

    async def set_run(self, manifest: dict[str, JSON]) -> None:
        """Store the run manifest: what replicas need to know about the run."""

    async def run(self) -> dict[str, JSON] | None:
        """The run manifest, or None where there is none (yet, or any more)."""

    async def depths(self) -> dict[Stage, StageDepth]:
        """How much waits and how much is on loan in every stage."""

    async def dead_letters(self) -> list[DeadLetter]:
        """The newest dead letters, oldest first."""

    async def ping(self) -> None:
        """Return if the broker answers.

        Raises:
            Unreachable: it does not.
        """

    async def close(self) -> None:
        """Give connections back; the broker is of no use afterwards."""


def check_size(message: Message) -> None:
    """Refuse a message that would stall the broker.

    Raises:
        InvalidInput: the body is larger than ``MAX_VALUE_BYTES``.
    """
    if len(message.body) > MAX_VALUE_BYTES:
        raise InvalidInput(
            f"message of task {message.task_id} has {len(message.body)} bytes; expected at most "
            f"{MAX_VALUE_BYTES}; use fewer positions per task, smaller groups or shorter thoughts"
        )


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """What ``Broker.consumer`` was asked for, checked.

    Example:
        ``ConsumerOptions(Stage.TASKS, Stage.ROLLOUTS, "rollout-a1", 60.0, 3, error_rollout)``

    Raises:
        InvalidInput: options that contradict each other.
    """

    stage: Stage
    result_stage: Stage | None
    name: str
    lease_s: float
    max_attempts: int
    error_result: ErrorResult | None

    def __post_init__(self) -> None:
        if self.lease_s <= 0 or self.max_attempts < 1 or not self.name:
            raise InvalidInput(
                f"consumer has name={self.name!r}, lease_s={self.lease_s}, "
                f"max_attempts={self.max_attempts}; expected a name, a positive lease and at least "
                "one attempt"
            )
        if self.result_stage is not None and self.error_result is None:
            raise InvalidInput(
                f"consumer of {self.stage} has a result stage and no error_result; "
                "expected both or neither: a failed message must be answered too"
            )

    def answer(self, message: Message, reason: str) -> Message:
        """The error result of a message.

        Raises:
            InvalidInput: no ``error_result`` was given.
        """
        if self.error_result is None:
            raise InvalidInput(
                f"consumer {self.name} of {self.stage} has no error_result; give one to answer with"
            )
        return self.error_result(message, reason)

    def error_result_or_none(self, message: Message, reason: str) -> Message | None:
        """The error result of a message that is being buried, or None where none can be made.

        A body that cannot be read must not keep its entry from being retired: it would come back
        for ever. So whatever making the answer raises is logged and the dead letter stands alone.
        """
        if self.result_stage is None:
            return None
        try:
            return self.answer(message, reason)
        except Exception:
            log.exception("task %d has no error result, only a dead letter", message.task_id)
            return None

    def check_result(self, result: Message | None) -> None:
        """Refuse a result that cannot be published.

        Raises:
            InvalidInput: it is too large, or there is no result stage.
        """
        if result is None:
            return
        if self.result_stage is None:
            raise InvalidInput(
                f"got a result for {self.stage}, whose consumer {self.name} has no result stage; "
                "finish with None"
            )
        check_size(result)

    def cap_reason(self) -> str:
        """Why an entry past the delivery cap is buried."""
        return (
            f"{self.max_attempts} attempts begun and none finished: the workers that took it died "
            "or lost their lease; see their logs"
        )
