"""How much work waits in each stage, as of a moment ago.

Design: a scrape must not wait for Redis, so the depths are fetched here, on their own beat, and shown
with the time they are of. While Redis cannot be reached, the last ones stay and grow old.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from forethought.errors import Unreachable
from forethought.queue.interface import Broker, Stage, StageDepth


class DepthWatch:
    """Asks a broker for its depths again and again; ``depths`` is empty before the first answer.

    Example:
        ``watch = DepthWatch(broker, every_s=1.0); asyncio.create_task(watch.run())``
    """

    def __init__(self, broker: Broker, every_s: float) -> None:
        self._broker, self._every_s = broker, every_s
        self.depths: Mapping[Stage, StageDepth] = {}
        self.seen_unix_s: float | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            with suppress(Unreachable):  # the learner's guard asks as often, and says so
                self.depths, self.seen_unix_s = await self._broker.depths(), time.time()
            # A poll by nature: Redis has nothing to wait on here.
            await asyncio.sleep(self._every_s)
