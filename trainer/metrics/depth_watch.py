"""The queue depth of each stage, as last polled.

Design: a scrape must not wait for Redis, so the depths are polled here and exported with the time of
the poll. While Redis is unreachable, the last values stay and go stale.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from forethought.errors import Unreachable
from forethought.queue.interface import Broker, Stage, StageDepth


class DepthWatch:
    """Polls a broker for its queue depths; ``depths`` is empty before the first reply.

    Example:
        ``watch = DepthWatch(broker, every_s=1.0); asyncio.create_task(watch.run())``
    """

    def __init__(self, broker: Broker, every_s: float) -> None:
        self._broker, self._every_s = broker, every_s
        self.depths: Mapping[Stage, StageDepth] = {}
        self.seen_unix_s: float | None = None

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            with suppress(Unreachable):  # the learner's guard polls as often, and logs it
                self.depths, self.seen_unix_s = await self._broker.depths(), time.time()
            # Polling: Redis offers nothing to block on here.
            await asyncio.sleep(self._every_s)
