"""Asyncio helpers for every process: reliable cancellation, waiting with a timeout, backoff.

Design: before Python 3.12 ``asyncio.wait_for`` can swallow a cancellation that arrives just as its inner
task completes, and redis-py sends every command through it; a loop that is cancelled only once may
therefore run indefinitely. So a task is re-cancelled until it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import count
from typing import Any, TypeVar

from forethought.errors import Unreachable

T = TypeVar("T")

_RECANCEL_S = 0.1
_MAX_DOUBLINGS = 60  # beyond any bound in seconds, and well within a float

log = logging.getLogger(__name__)


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when all have ended; their exceptions stay in the tasks, unreported."""
    ending = set(tasks)
    running = ending
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_RECANCEL_S)
    for task in ending:
        if not task.cancelled():
            task.exception()  # or asyncio reports it as never retrieved


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


class Outage:
    """One caller's failures in a row to reach a peer, logged once per reason, with the recovery.

    Example:
        ``outage = Outage(); await asyncio.sleep(outage.note(error)); ...; outage.end()``
    """

    def __init__(self) -> None:
        self._waits_s = backoff()
        self._since_s: float | None = None
        self._logged = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first failure in a row; 0 without one."""
        return 0.0 if self._since_s is None else time.monotonic() - self._since_s

    def note(self, error: Unreachable) -> float:
        """Log a failure unless it repeats the last; returns the seconds to wait before the next attempt."""
        if self._since_s is None:
            self._since_s = time.monotonic()
        wait_s = next(self._waits_s)
        if self._logged != str(error):
            self._logged = str(error)
            log.warning("%s; retrying until it answers", error)
        return wait_s

    def end(self) -> None:
        """The peer was reached."""
        if self._since_s is not None:
            log.info("reached again after an outage of %.1f s", self.elapsed_s)
            self._waits_s, self._since_s, self._logged = backoff(), None, ""


class Retry:
    """Repeats what finds its peer unreachable, with backoff.

    It gives up after ``patience_s`` seconds of failures in a row (0: never), and at the first failure once
    ``stop`` is set.

    Example:
        ``epoch = await Retry(patience_s=600.0)(broker.current_epoch)``
    """

    def __init__(self, patience_s: float = 0.0, stop: asyncio.Event | None = None) -> None:
        self._patience_s, self._stop = patience_s, stop or asyncio.Event()

    async def __call__(self, act: Callable[[], Awaitable[T]]) -> T:
        """The result of ``act``, which must be idempotent.

        Raises:
            Unreachable: given up.
        """
        outage = Outage()
        while True:
            try:
                result = await act()
            except Unreachable as error:
                is_over = 0 < self._patience_s <= outage.elapsed_s
                if is_over or self._stop.is_set():
                    raise
                wait_s = outage.note(error)
            else:
                outage.end()
                return result
            await wait_for_event(self._stop, wait_s)


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which a cancellation does not end: it is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    result = task.exception() or task.result()  # retrieved, or asyncio logs it as never retrieved
    if cancelled:
        raise asyncio.CancelledError
    if isinstance(result, BaseException):
        raise result
    return result
