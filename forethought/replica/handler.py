"""What a service has to provide for a worker: whether a message can be handled now, and its result.

Design: a handler knows its engine or scorer and nothing of leases, attempts and deadlines, so that both
services share one work loop. The price is that it sees whole batches only, and is cancelled as a whole.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from forethought.queue.interface import Message


class Readiness(Enum):
    """Whether a message can be handled now."""

    READY = auto()
    """It can be handled with the current weights."""

    WAIT = auto()
    """It needs newer weights."""

    FOREIGN = auto()
    """The weights here are of another run, or of a later epoch: it is for another replica."""


class Handler(Protocol):
    """A service's processing of messages; the worker does everything else."""

    def readiness(self, message: Message) -> Readiness:
        """Whether the message can be handled now. An exception dead-letters the message at once."""

    async def changed(self) -> None:
        """Return after the next change that may affect the readiness of a message.

        Called again as soon as it returns; must start waiting before its first suspension point.
        """

    async def handle(self, messages: list[Message]) -> list[Message]:
        """The results, in order. An exception becomes the error result of every message.

        Cancelled when none of the results is needed any more.

        Raises:
            EngineLost: nothing can be handled here any more; others are to handle these messages.
            MemoryError: too many messages at once; they are to be handled one at a time.
        """
