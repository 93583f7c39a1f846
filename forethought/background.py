"""Asyncio helpers for every process: reliable cancellation, waiting with a timeout, backoff.

Design: before Python 3.12 ``asyncio.wait_for`` can swallow a cancellation that arrives just as its inner
task completes, and redis-py sends every command through it; a loop that is cancelled only once may
therefore run indefinitely. So a task is re-cancelled until it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import count
from typing import Any, TypeVar

from forethought.errors import Unreachable

T = TypeVar("T")

_RECANCEL_S = 0.1
_MAX_DOUBLINGS = 60  # beyond any bound in seconds, and well within a float

log = logging.getLogger(__name__)


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when all have ended; their exceptions stay in the tasks."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_RECANCEL_S)


async def first_failure(tasks: Iterable[asyncio.Task[Any]], main: asyncio.Task[Any]) -> None:
    """Wait until ``main`` has ended, or raise the exception of any other task that ends before it."""
    await asyncio.wait((main, *tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in (main, *tasks):
        if task.done():
            task.result()


async def run_until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``, or None when ``stop`` is set first; ``work`` is then cancelled."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether ``event`` is set within ``timeout_s`` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


def backoff_s(num_failures: int, first_s: float = 0.1, longest_s: float = 5.0) -> float:
    """Seconds to wait after the ``num_failures``-th consecutive failure (from 1): exponential, capped."""
    return min(first_s * 2.0 ** min(num_failures - 1, _MAX_DOUBLINGS), longest_s)


def backoff(first_s: float = 0.1, longest_s: float = 5.0) -> Iterator[float]:
    """:func:`backoff_s` after the first failure, the second, and so on, without end."""
    return (backoff_s(num_failures, first_s, longest_s) for num_failures in count(1))


async def retry_until_reachable(act: Callable[[], Awaitable[T]]) -> T:
    """The result of ``act``, retried with backoff while its peer is unreachable; it must be idempotent."""
    waits_s = backoff()
    while True:
        try:
            return await act()
        except Unreachable as error:
            wait_s = next(waits_s)
            log.warning("%s; retrying in %.1f s", error, wait_s)
        await asyncio.sleep(wait_s)
