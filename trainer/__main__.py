"""``python -m trainer``: the learner process.

Heavy imports happen after the settings have been validated, so a configuration error is reported at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from forethought import process
from forethought.config import Settings
from forethought.errors import InvalidInput, Unreachable
from forethought.preflight import check_corpus, check_memory, check_redis, check_run, check_token
from forethought.run.directory import RunDirectory
from forethought.run.pinning import pinned

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from forethought.objectives import Objective
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
    """Own the run directory and train until done or stopped; a finished run is left as it is."""
    objective = check_run(settings)
    check_redis(settings, objective)
    check_token(settings, objective)
    check_corpus(settings)
    directory = RunDirectory(settings.run.directory)
    with directory.owned():
        if note := directory.finished_note(settings.learner):
            log.info("%s", note)
            return 0
        from trainer.warmup.preparation import prepared

        parts, summary = prepared(pinned(settings), objective, _supervised)
        if parts is None:  # stopped or failed in the warm-up: the next start resumes it
            return process.run_status(summary, settings.learner.stopped_status)
        log.info("%s", parts.precision_line)
        summary = _supervised(parts)
        directory.write_summary(summary)
    log.info("step %d, checkpoint %s", summary["steps"], summary["checkpoint"])
    return process.run_status(summary, settings.learner.stopped_status)


def dry_run(settings: Settings) -> int:
    """Build everything that can be built without Redis, and print the memory estimate.

    Redis's memory is compared with the run's needs if there is a Redis to ask.
    """
    objective = check_run(settings)
    check_corpus(settings)
    redis_note = _redis_note(settings, objective) if settings.redis.url else ""
    from forethought.compute.policy import longest_row_tokens
    from trainer.assembly import assemble
    from trainer.learner.memory import estimate_memory

    parts = assemble(pinned(settings), objective)
    language_model = parts.learner.language_model
    if reason := language_model.consistency.weights_fault:
        raise InvalidInput(reason)
    longest = longest_row_tokens(settings, objective, language_model.tokenizer, parts.prompting)
    estimate = estimate_memory(parts.settings, longest)
    print(f"configuration is valid: {estimate.num_parameters:,} parameters")
    print(parts.precision_line)
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
    for note in language_model.consistency.notes():
        print(note)
    if redis_note:
        print(redis_note)
    return 0


def _redis_note(settings: Settings, objective: Objective) -> str:
    from forethought.queue import read_memory

    try:
        memory = asyncio.run(read_memory(settings.redis.url, settings.run.name))
        return check_memory(settings, objective, memory)
    except Unreachable as error:
        return f"Redis's memory is not compared with the run's needs: {error}"


async def run_thinking(parts: Assembly, stop: asyncio.Event) -> dict[str, Any]:
    """Run with thoughts, serving the ops port, until done or stopped; returns the summary."""
    from forethought import queue
    from forethought.telemetry.metrics import process_registry
    from trainer.thinking_run import ThinkingRun

    registry = process_registry("learner")
    broker = queue.connect(parts.settings.redis.url, parts.settings.run.name)
    run = ThinkingRun(parts, broker, stop)
    run.export(registry)
    try:
        await broker.ping()
        if warning := check_memory(parts.settings, parts.objective, await broker.memory()):
            log.warning("%s", warning)
        async with _ops_port(parts.settings, run.describe, registry):
            return await run.run()
    finally:
        await broker.close()


async def run_next_token(parts: Assembly, stop: asyncio.Event) -> dict[str, Any]:
    """Run without thoughts, serving the ops port, until done or stopped; returns the summary."""
    from forethought.telemetry.metrics import process_registry
    from trainer.runs import next_token_run

    run = next_token_run(parts)
    async with _ops_port(parts.settings, run.describe, process_registry("learner")):
        return await run.run_until(stop)


@asynccontextmanager
async def _ops_port(
    settings: Settings, describe: Callable[[], dict[str, object]], registry: CollectorRegistry
) -> AsyncIterator[None]:
    from forethought.replica.host import address_towards, listening_host
    from forethought.telemetry.ops import OpsServer

    host = listening_host(address_towards(settings.redis.url))  # as replicas choose theirs
    ops = OpsServer(host, settings.learner.ops_port, lambda: True, describe, registry)
    await ops.start()
    log.info("ops port %d", ops.port)
    try:
        yield
    finally:
        await ops.stop()


def _supervised(parts: Assembly) -> dict[str, Any]:
    summary: dict[str, Any] = {}

    async def run(stop: asyncio.Event) -> int:
        summary.update(
            await (run_thinking if parts.objective.thinks else run_next_token)(parts, stop)
        )
        return 0

    process.run_until_signalled(run)
    return summary


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
