"""``python -m services.rollout``: one rollout replica. It only needs a Redis URL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from forethought import process, queue
from forethought.config import Settings
from services.rollout.assembly import serve_run


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve until SIGTERM; returns the exit status."""
    return process.run_service("rollout", serve, __doc__, argv)


async def serve(settings: Settings, stop: asyncio.Event) -> int:
    """Host one engine until stopped."""
    broker = queue.connect(settings.redis.url, settings.run.name)
    try:
        return await serve_run(settings, broker, stop)
    finally:
        await broker.close()


if __name__ == "__main__":
    sys.exit(main())
