"""``python -m trainer``: the learner process.

What is heavy is imported only once the settings were found sound, so that a mistake is told at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forethought import process
from forethought.config import Settings, write_resolved
from forethought.config.checks import check_corpus, check_redis, check_run
from forethought.run_directory import RunDirectory

if TYPE_CHECKING:
    from trainer.assembly import Assembly

log = logging.getLogger("trainer")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = process.parser("python -m trainer", __doc__ or "")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the configuration, estimate memory, stop"
    )
    arguments = parser.parse_args(argv)

    def run() -> int:
        settings = process.settings_of(arguments)
        return dry_run(settings) if arguments.dry_run else train(settings)

    return process.exit_status("trainer", run)


def train(settings: Settings) -> int:
    """Own the run directory and train until done or told to stop."""
    check_redis(settings, check_run(settings))
    check_corpus(settings)
    from trainer.assembly import assemble

    directory = RunDirectory(settings.run.directory)
    with directory.owned():
        write_resolved(settings, directory.config)
        parts = assemble(settings)
        summary = _think(parts) if parts.objective.thinks else _predict(parts)
        directory.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    log.info("step %d, checkpoint %s", summary["steps"], summary["checkpoint"])
    return 0


def dry_run(settings: Settings) -> int:
    """Build everything that can be built without Redis, and print what it would take."""
    check_run(settings)
    check_corpus(settings)
    from trainer.assembly import assemble
    from trainer.memory import estimate_memory

    assemble(settings)
    estimate = estimate_memory(settings)
    print(f"configuration is sound: {estimate.num_parameters:,} parameters, {settings.model.dtype}")
    for name in (
        "weights",
        "masters",
        "gradients",
        "moments",
        "baseline",
        "activations",
        "snapshots",
    ):
        print(f"  {name:<14}{_mebibytes(getattr(estimate, name)):>12}")
    print(f"  {'total':<14}{_mebibytes(estimate.total_bytes):>12}")
    print(f"  {'this machine':<14}{_mebibytes(_memory_bytes()):>12}")
    return 0


def _think(parts: Assembly) -> dict[str, Any]:
    from prometheus_client import CollectorRegistry

    from forethought import queue
    from forethought.telemetry.ops import OpsServer
    from trainer.thinking_run import ThinkingRun

    settings = parts.settings
    summary: dict[str, Any] = {}

    async def supervised(stop: asyncio.Event) -> int:
        broker = queue.connect(settings.redis.url, settings.run.name)
        run = ThinkingRun(parts, broker, stop)
        ops = OpsServer(
            "127.0.0.1", settings.learner.ops_port, lambda: True, run.describe, CollectorRegistry()
        )
        try:
            await broker.ping()
            await ops.start()
            summary.update(await run.run())
        finally:
            await ops.stop()
            await broker.close()
        return 0

    process.run_until_signalled(supervised)
    return summary


def _predict(parts: Assembly) -> dict[str, Any]:
    from trainer.next_token_run import NextTokenRun

    run = NextTokenRun(parts)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: run.stop())
    return run.run()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
