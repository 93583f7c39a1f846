"""An event loop whose clock jumps to the next timer: simulations take no time and always end alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Never blocks: with nothing to do until a timer, it moves the clock there."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "every coroutine waits for something that never happens"
        self.now_s += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


def run(simulation: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that uses neither threads nor sockets."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(simulation)
