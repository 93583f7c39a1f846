"""Outliving an outage of the broker: do a thing until it can be done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from forethought.errors import Unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0


async def insist(act: Callable[[], Awaitable[T]]) -> T:
    """Do ``act`` until the broker can be reached; what is asked for this way must be idempotent."""
    pause_s = _PAUSE_S
    while True:
        try:
            return await act()
        except Unreachable as error:
            log.warning("%s; trying again in %.1f s", error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
