"""``python -m services.reward``: one reward replica, served over the task queue, HTTP and gRPC.

With ``reward.policy_path`` it runs standalone: no queue, no Redis, the weights of that directory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from forethought import process, queue
from forethought.config import Settings
from forethought.errors import InvalidInput
from services.reward.assembly import serve_run, serve_standalone


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve until SIGTERM; returns the exit status."""
    return process.run_service("reward", serve, __doc__, argv, needs_redis=is_of_run)


def is_of_run(settings: Settings) -> bool:
    """Whether the settings describe a replica of a run rather than a standalone service.

    Raises:
        InvalidInput: a baseline path without a policy path.
    """
    section = settings.reward
    if section.baseline_path and not section.policy_path:
        raise InvalidInput(
            "reward.baseline_path is set and reward.policy_path is not; expected both, or neither to "
            "score for a run: add --policy DIR"
        )
    return not section.policy_path


async def serve(settings: Settings, stop: asyncio.Event) -> int:
    """Host one scorer until stopped: for a run, or standalone."""
    if not is_of_run(settings):
        return await serve_standalone(settings, stop)
    broker = queue.connect(settings.redis.url, settings.run.name)
    try:
        return await serve_run(settings, broker, stop)
    finally:
        await broker.close()


if __name__ == "__main__":
    sys.exit(main())
