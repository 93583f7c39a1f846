"""The queue's interface: two protocols and the values they exchange.

Design: delivery is at-least-once, and a *lease* records which consumer works on what. A lease ends when
the delivery is finished or released, or when it expires on the broker's clock; every change of owner is
one atomic step in the broker. The price: a result can be computed twice, and the learner's set of
outstanding ids decides which one counts (it has to anyway, because Redis may lose everything).

An *attempt* is counted when work on a delivery begins, not when it is received: a task that waits for
newer weights, or is released on shutdown, has used no attempt. Redis's own delivery counter does not
make that distinction and is not used.

The *watermark* is the oldest task whose result the learner still waits for. A worker that holds an older
one drops it: otherwise a run that falls behind once spends its capacity on results that come too late,
and never catches up.

Nothing here loads redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from forethought.errors import InvalidInput
from forethought.types import Replica, original_of

log = logging.getLogger(__name__)

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

MAX_VALUE_BYTES = 1 << 20
"""The largest message body. Redis serves one command at a time, so larger ones stall every client."""


class Stage(StrEnum):
    """The three streams, in the order of the data flow."""

    TASKS = "tasks"
    ROLLOUTS = "rollouts"
    SCORED = "scored"


@dataclass(frozen=True, slots=True)
class Message:
    """One unit of work; the queue reads only its task id and epoch.

    Example:
        ``Message(task_id=70, epoch=1, body=encode_task(task))``
    """

    task_id: int
    epoch: int
    body: bytes


@dataclass(frozen=True, slots=True, order=True)
class Watermark:
    """The oldest open task of a run: results of tasks before it are no longer needed.

    Tasks are ordered by epoch, then by id; a task that replaces another is as old as that one.

    Example:
        ``Watermark(epoch=2, task_id=40).has_passed(Message(39, 2, body))``
    """

    epoch: int = 0
    task_id: int = 0

    def has_passed(self, message: Message) -> bool:
        """Whether the result of a message is no longer needed."""
        return (message.epoch, original_of(message.task_id)) < (self.epoch, self.task_id)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message leased to a consumer; ``entry_id`` identifies the lease.

    ``num_earlier_attempts`` counts attempts that other consumers began and did not finish.

    Example:
        ``Delivery(Stage.TASKS, "1718000000000-0", message)``
    """

    stage: Stage
    entry_id: str
    message: Message
    num_earlier_attempts: int = 0


@dataclass(frozen=True, slots=True)
class StageDepth:
    """Queue depth of a stage: ``waiting`` messages are not leased, ``pending`` ones are.

    Example:
        ``StageDepth(waiting=12, pending=4)``
    """

    waiting: int
    pending: int


@dataclass(frozen=True, slots=True)
class BrokerMemory:
    """What a broker holds, for all of its users, and what it does at its limit (0: it has none).

    Example:
        ``BrokerMemory(used_bytes=1_200_000, max_bytes=512 << 20, policy="noeviction")``
    """

    used_bytes: int
    max_bytes: int = 0
    policy: str = "noeviction"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up on, and the reason.

    Example:
        ``DeadLetter(Stage.TASKS, message, "3 attempts begun and none finished; ...")``
    """

    stage: Stage
    message: Message
    reason: str


ErrorResult: TypeAlias = Callable[[Message, str], Message]
"""Makes the result published for a failed message: (message, reason) -> result."""


class Consumer(Protocol):
    """A worker's access to one stage. Every method may raise ``Unreachable``; all can be retried.

    All consumers of a stage must use the same ``lease_s``: expiry is judged by the claimer's.
    """

    options: ConsumerOptions
    num_buried: int
    """Messages that this consumer dead-lettered."""

    async def receive(self, max_items: int, wait_s: float) -> list[Delivery]:
        """Up to ``max_items`` deliveries: those with expired leases if there are any, else new ones.

        Waits up to ``wait_s`` seconds for the first one and returns an empty list if none arrives.
        Entries with an expired lease that have used up their ``max_attempts`` are dead-lettered, not
        returned.
        """

    async def begin(self, delivery: Delivery) -> int:
        """Count an attempt; returns the attempts begun so far, including this one.

        0 means that the lease was lost: nothing was counted, and another consumer owns the work.
        """

    async def renew(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Renew the leases this consumer still holds and return those; the others are lost."""

    async def finish(self, delivery: Delivery, result: Message | None) -> bool:
        """Publish the result and retire the delivery (ack and delete) in one atomic step.

        Returns False and publishes nothing if it was already retired (by another consumer, by
        ``clear_work``, or by an earlier call whose reply was lost). A delivery whose lease was lost
        may still be finished: the first to finish wins.

        Raises:
            InvalidInput: the result is larger than ``MAX_VALUE_BYTES``, or there is no result stage.
        """

    async def discard(self, delivery: Delivery) -> None:
        """Retire the delivery without a result."""

    async def release(self, delivery: Delivery) -> None:
        """Return the delivery to the queue at once; an attempt this consumer began is un-counted.

        It goes to the end of the queue, which wakes a waiting consumer. No effect if the lease was
        lost.
        """

    async def watermark(self) -> Watermark:
        """The run's watermark; of epoch 0 if none was set, or if Redis lost its data."""

    async def expire(self, deliveries: Sequence[Delivery]) -> None:
        """Let the leases that this consumer still holds expire now, as if it had died.

        Begun attempts stay counted, so others claim the work at once, up to its ``max_attempts``.
        """

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """Dead-letter the delivery, publish its error result and retire it, in one atomic step.

        Returns False if it was already retired. If no error result can be made (a body from another
        release), only the dead letter is written, and the task fails at the learner's deadline.
        """


class Broker(Protocol):
    """A run's queues, epoch, manifest and replicas.

    Any method may raise ``Unreachable``, or ``Unauthenticated`` or ``Forbidden`` if the broker does not let
    this client do it.
    """

    async def put(self, stage: Stage, messages: Iterable[Message]) -> None:
        """Append messages in order. After ``Unreachable`` some may have been appended: put all again.

        Raises:
            InvalidInput: a body is larger than ``MAX_VALUE_BYTES``; nothing was appended.
        """

    def consumer(self, options: ConsumerOptions) -> Consumer:
        """A consumer of a stage; does no I/O."""

    async def new_epoch(self, at_least: int) -> int:
        """Take a new epoch, atomically: one above the newest, and at least ``at_least``."""

    async def restore_epoch(self, epoch: int) -> int:
        """Raise the run's epoch to ``epoch`` if Redis has lost it; returns the newest epoch.

        A result above ``epoch`` means that a newer learner owns the run. Idempotent.
        """

    async def current_epoch(self) -> int:
        """The newest epoch; 0 if none was taken yet, or if Redis lost its data."""

    async def raise_watermark(self, watermark: Watermark) -> None:
        """Set the watermark that consumers see, unless theirs is as high. Idempotent."""

    @property
    def place(self) -> str:
        """The run and where its queues are, without secrets, for messages."""

    async def instance_id(self) -> str:
        """An id that stays the same as long as no data can have been lost.

        It changes when Redis restarts (with its data, without, or with stale data), fails over, or
        is flushed. The learner compares it with the last one it saw; on a change it restores its
        epoch, sets manifest and watermark again and re-enqueues its outstanding tasks, all idempotent.
        """

    async def clear_work(self) -> None:
        """Empty all stages, but not the dead letters; leased deliveries can no longer be finished."""

    async def announce(self, replica: Replica, ttl_s: float) -> None:
        """Register a replica, or renew it, for ``ttl_s`` seconds of the broker's clock."""

    async def withdraw(self, replica_id: str) -> None:
        """Remove a replica from the registry."""

    async def replicas(self) -> list[Replica]:
        """The replicas whose registration has not expired, by id."""

    async def set_run(self, epoch: int, manifest: dict[str, JSON]) -> None:
        """Store the run manifest, with its epoch; replicas configure themselves from it.

        Ignored if a later epoch was taken: a learner that is superseded while it stores its manifest must
        not replace its successor's.
        """

    async def run(self) -> dict[str, JSON] | None:
        """The run manifest, or None if there is none (not set yet, or lost)."""

    async def depths(self) -> dict[Stage, StageDepth]:
        """Waiting and leased messages of every stage."""

    async def dead_letters(self) -> list[DeadLetter]:
        """The newest dead letters, oldest first."""

    async def memory(self) -> BrokerMemory:
        """The memory that the broker uses and may use."""

    async def ping(self) -> None:
        """Return if the broker responds.

        Raises:
            Unreachable: it does not.
        """

    async def close(self) -> None:
        """Close the connections; the broker cannot be used afterwards."""


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
    """What a consumer reads, where its results go, and how it leases; validated.

    ``name`` must be unique among the live consumers of the stage, because leases are checked against it.
    ``error_result`` is required whenever there is a ``result_stage``.

    Example:
        ``ConsumerOptions(Stage.TASKS, Stage.ROLLOUTS, "rollout-a1", 60.0, 3, error_rollout)``

    Raises:
        InvalidInput: contradictory options.
    """

    stage: Stage
    result_stage: Stage | None
    name: str
    lease_s: float
    max_attempts: int
    error_result: ErrorResult | None = None

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
                "expected both or neither: failed messages need a result too"
            )

    def make_error_result(self, message: Message, reason: str) -> Message:
        """The error result of a message.

        Raises:
            InvalidInput: no ``error_result`` was given.
        """
        if self.error_result is None:
            raise InvalidInput(
                f"consumer {self.name} of {self.stage} has no error_result, so its failed messages "
                "cannot be answered; give it one"
            )
        return self.error_result(message, reason)

    def error_result_or_none(self, message: Message, reason: str) -> Message | None:
        """The error result of a message being dead-lettered, or None if none can be made.

        A body that cannot be decoded must not keep its entry from being retired, or it would be
        redelivered forever. So any exception here is logged, and only the dead letter is written.
        """
        if self.result_stage is None:
            return None
        try:
            return self.make_error_result(message, reason)
        except Exception:
            log.exception(
                "no error result could be made for task %d, only a dead letter", message.task_id
            )
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
                f"got a result for {self.stage}, but consumer {self.name} has no result stage; "
                "finish with None"
            )
        check_size(result)

    def cap_reason(self) -> str:
        """The dead-letter reason of an entry past its attempt limit."""
        return (
            f"{self.max_attempts} attempts begun and none finished: the workers that took it died "
            "or lost their lease; see their logs"
        )
