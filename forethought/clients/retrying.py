"""Calling a service: one deadline per call, however many attempts it takes.

Design: the request (:class:`Request`), the transport and the retry policy (:class:`RetryBudget`) are
independent, so each is written once for HTTP and gRPC, and the sync and async loops differ only in
``await``. Every call is idempotent: it reads, or samples from a seed. So a retryable failure is retried
even if the server may have processed the previous attempt; the price is that a server may compute a result
that no one reads.
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

_JITTER = 0.25  # waits are up to this share longer


@dataclass(frozen=True, slots=True)
class Request(Generic[R]):
    """One call: its gRPC method, its HTTP path, its plain body, and the reader of its reply.

    A body of None is a GET over HTTP.

    Example:
        ``Request("Models", "/v1/models", None, read_models)``
    """

    method: str
    path: str
    body: Any
    read: Callable[[Any], R]


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is attempted, and the exponential backoff in between.

    A server's Retry-After is honoured if it is longer.

    Example:
        ``Retries(max_attempts=1)`` never retries
    """

    max_attempts: int = 6
    first_wait_s: float = 0.1
    longest_wait_s: float = 5.0

    def wait_s(self, num_failed: int, retry_after_s: float) -> float:
        """Seconds to wait after the ``num_failed``-th failed attempt (counted from 1)."""
        return max(retry_after_s, backoff_s(num_failed, self.first_wait_s, self.longest_wait_s))


class AttemptFailed(Exception):
    """An attempt failed with ``error``; ``retryable``: whether another attempt may succeed."""

    def __init__(
        self, error: ForethoughtError, retryable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(str(error))
        self.error, self.retryable, self.retry_after_s = error, retryable, retry_after_s


class RetryBudget:
    """The remaining time and attempts of one call."""

    def __init__(self, timeout_s: float, retries: Retries) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        self._retries = retries
        self._num_failed = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._deadline_s - time.monotonic())

    def wait_after(self, failed: AttemptFailed) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ForethoughtError: the attempt's error, if it is not retryable or the budget is exhausted.
        """
        self._num_failed += 1
        wait_s = self._retries.wait_s(self._num_failed, failed.retry_after_s)
        wait_s *= 1 + _JITTER * random.random()  # so that clients do not all retry at once
        is_last = self._num_failed >= self._retries.max_attempts
        if not failed.retryable or is_last or wait_s >= self.left_s:
            raise failed.error from failed.__cause__
        return wait_s


class Transport(Protocol):
    """Makes one blocking attempt per ``attempt``. Both methods raise only :class:`AttemptFailed`."""

    def attempt(self, request: Request[Any], timeout_s: float) -> Any:
        """The plain reply."""

    def close(self) -> None:
        """Release the connections."""


class AsyncTransport(Protocol):
    """:class:`Transport` for asyncio."""

    async def attempt(self, request: Request[Any], timeout_s: float) -> Any:
        """The plain reply."""

    async def close(self) -> None:
        """Release the connections."""


def send(transport: Transport, request: Request[R], timeout_s: float, retries: Retries) -> R:
    """Make a call within ``timeout_s`` seconds, including all waits; returns the typed reply.

    Raises:
        ForethoughtError: of the class that the server raised, or ``Unreachable``.
    """
    budget = RetryBudget(timeout_s, retries)
    while True:
        try:
            reply = transport.attempt(request, budget.left_s)
        except AttemptFailed as failed:
            time.sleep(budget.wait_after(failed))
        else:
            return read(request, reply)


async def send_async(
    transport: AsyncTransport, request: Request[R], timeout_s: float, retries: Retries
) -> R:
    """:func:`send` for asyncio; cancelling it cancels the request."""
    budget = RetryBudget(timeout_s, retries)
    while True:
        try:
            reply = await transport.attempt(request, budget.left_s)
        except AttemptFailed as failed:
            await asyncio.sleep(budget.wait_after(failed))
        else:
            return read(request, reply)


def read(request: Request[R], reply: Any) -> R:
    """Parse a plain reply into the typed one.

    Raises:
        ForethoughtError: this release does not know the reply's format.
    """
    try:
        return request.read(reply)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ForethoughtError):
            raise
        raise ForethoughtError(
            f"the reply to {request.method} has an unknown format ({error!r}); expected that of this "
            "release; run the same Forethought release on both sides"
        ) from error
