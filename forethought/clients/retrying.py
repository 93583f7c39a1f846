"""Asking a service: one deadline for a question, however many attempts it takes.

Design: what is asked (:class:`Call`), how it travels (a transport) and when it is asked again
(:class:`RetryBudget`) know nothing of each other, so each is written once for HTTP and gRPC, and the sync
and async loops differ in three words. Every question is idempotent: it reads, or samples from a seed.
So an attempt that may pass later is repeated whatever became of the one before; the price is that a
server may compute an answer that nobody reads.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from forethought.background import backoff_s
from forethought.errors import ForethoughtError

R = TypeVar("R")

_JITTER = 0.25  # at most this share longer


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One call: its name over gRPC, its path over HTTP, its plain body, and how the reply is read.

    A body of None is a GET over HTTP.

    Example:
        ``Call("Models", "/v1/models", None, read_models)``
    """

    method: str
    path: str
    body: Any
    read: Callable[[Any], R]


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a question is asked again, and how long to wait: twice as long each time.

    A server's own Retry-After is honoured where it is longer.

    Example:
        ``Retries(max_attempts=1)`` never asks again
    """

    max_attempts: int = 6
    first_wait_s: float = 0.1
    longest_wait_s: float = 5.0

    def wait_s(self, num_failed: int, retry_after_s: float) -> float:
        """Seconds to wait after the attempt that made ``num_failed``, counted from 1."""
        return max(retry_after_s, backoff_s(num_failed, self.first_wait_s, self.longest_wait_s))


class AttemptFailed(Exception):
    """An attempt failed with ``error``; ``retryable`` says whether another one makes sense."""

    def __init__(
        self, error: ForethoughtError, retryable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(str(error))
        self.error, self.retryable, self.retry_after_s = error, retryable, retry_after_s


class RetryBudget:
    """What is left of one question's deadline and attempts."""

    def __init__(self, timeout_s: float, retries: Retries) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        self._retries = retries
        self._num_failed = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self._deadline_s - time.monotonic())

    def wait_after(self, refused: AttemptFailed) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ForethoughtError: the refusal's error, where no further attempt makes sense or fits.
        """
        self._num_failed += 1
        wait_s = self._retries.wait_s(self._num_failed, refused.retry_after_s)
        wait_s *= 1 + _JITTER * random.random()  # callers refused together do not return together
        is_last = self._num_failed >= self._retries.max_attempts
        if not refused.retryable or is_last or wait_s >= self.left_s:
            raise refused.error from refused.__cause__
        return wait_s


class Transport(Protocol):
    """One attempt, blocking. Both methods raise nothing but :class:`AttemptFailed`."""

    def ask(self, question: Call[Any], timeout_s: float) -> Any:
        """The plain reply."""

    def close(self) -> None:
        """Release the connections."""


class AsyncTransport(Protocol):
    """One attempt, awaited; like :class:`Transport`."""

    async def ask(self, question: Call[Any], timeout_s: float) -> Any:
        """The plain reply."""

    async def close(self) -> None:
        """Release the connections."""


def call(transport: Transport, question: Call[R], timeout_s: float, retries: Retries) -> R:
    """The answer, within ``timeout_s`` seconds, waits included.

    Raises:
        ForethoughtError: of the class that the server raised, or ``Unreachable``.
    """
    budget = RetryBudget(timeout_s, retries)
    while True:
        try:
            reply = transport.ask(question, budget.left_s)
        except AttemptFailed as refused:
            time.sleep(budget.wait_after(refused))
        else:
            return read(question, reply)


async def call_async(
    transport: AsyncTransport, question: Call[R], timeout_s: float, retries: Retries
) -> R:
    """:func:`ask`, awaited; cancelling it cancels the call."""
    budget = RetryBudget(timeout_s, retries)
    while True:
        try:
            reply = await transport.ask(question, budget.left_s)
        except AttemptFailed as refused:
            await asyncio.sleep(budget.wait_after(refused))
        else:
            return read(question, reply)


def read(question: Call[R], reply: Any) -> R:
    """The typed answer of a plain reply.

    Raises:
        ForethoughtError: the reply is of another form than this release knows.
    """
    try:
        return question.read(reply)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ForethoughtError):
            raise
        raise ForethoughtError(
            f"the reply to {question.method} has an unknown form ({error!r}); expected that of this "
            "release; run the same Forethought release on both sides"
        ) from error
