"""The threads in which large requests are read and large replies are written.

Design: what is small is converted on the event loop, where it takes less time than handing it over. What
is large goes to two threads of its own, so that the loop answers probes meanwhile, pushes of weights do
not wait behind it, and its memory is that of two requests at a time. A caller who leaves stops the
conversion before its next item. The price: Python runs one thread at a time, so the loop is slower
meanwhile, and one call into C (decoding a body) blocks it for up to some 0.1 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

LARGE = 32_768
"""Bytes, characters or ids; converting fewer takes about a millisecond."""

_NUM_THREADS = 2


class Conversions:
    """Runs conversions where they do not block the event loop.

    Example:
        ``await conversions.run(len(body), read_object, body)``
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="conversion")

    async def run(
        self, size: int, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function that converts ``size`` units."""
        if size < LARGE:
            return function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def map(self, size: int, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results of every item; cancelling the call stops before the next one."""
        if size < LARGE:
            return [function(item) for item in items]
        gone = Event()

        def convert() -> list[R]:
            results: list[R] = []
            for item in items:
                if gone.is_set():
                    break
                results.append(function(item))
            return results

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, convert)
        except asyncio.CancelledError:
            gone.set()
            raise

    def close(self) -> None:
        """Start no further conversion."""
        self._threads.shutdown(wait=False, cancel_futures=True)
