"""``python -m services.single``: learner, one rollout and one reward replica, all in one process.

Design: the same parts as a distributed run, with an in-memory broker, for experiments so small that
starting four processes and a Redis would take most of the time. Only this module may import both learner
and services. The price: they share one interpreter, and a crash loses the work in flight (the run resumes
from its last checkpoint).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forethought import process
from forethought.background import end, first_failure
from forethought.config import Settings
from forethought.config.sections import AuthSection
from forethought.preflight import check_corpus, check_run
from forethought.run.directory import RunDirectory
from forethought.run.pinning import pinned

if TYPE_CHECKING:
    from trainer.assembly import Assembly

log = logging.getLogger("single")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit status."""
    parser = process.parser("python -m services.single", __doc__ or "")
    arguments = parser.parse_args(argv)
    return process.exit_status("single", lambda: run(process.settings_of(arguments)))


def run(settings: Settings) -> int:
    """Own the run directory and train until done or stopped; a finished run is left as it is."""
    objective = check_run(settings)
    check_corpus(settings)
    settings = _in_process(settings)
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


def _supervised(parts: Assembly) -> dict[str, Any]:
    summary: dict[str, Any] = {}

    async def train(stop: asyncio.Event) -> int:
        run = _run_thinking if parts.objective.thinks else _run_next_token
        summary.update(await run(parts, stop))
        return 0

    process.run_until_signalled(train)
    return summary


def _in_process(settings: Settings) -> Settings:
    """Loopback addresses and no token: only this process uses its services. No watchdog, because no other
    replica could take over."""
    free_port = {"http_host": "127.0.0.1", "http_port": 0, "hang_timeout_s": 0.0}
    reward = settings.reward.model_copy(update=free_port)
    rollout = settings.rollout.model_copy(update={"hang_timeout_s": 0.0})
    redis = settings.redis.model_copy(update={"url": "memory://"})
    return settings.model_copy(
        update={
            "auth": AuthSection(open=True),
            "redis": redis,
            "reward": reward,
            "rollout": rollout,
        }
    )


async def _run_thinking(parts: Assembly, stop: asyncio.Event) -> dict[str, Any]:
    from forethought import queue
    from services.reward.assembly import serve_run as serve_reward
    from services.rollout.assembly import serve_run as serve_rollout
    from trainer.thinking_run import ThinkingRun

    settings, done = parts.settings, asyncio.Event()
    broker = queue.connect(settings.redis.url, settings.run.name)
    replicas = [
        asyncio.create_task(serve(settings, broker, done))
        for serve in (serve_rollout, serve_reward)
    ]
    learning = asyncio.create_task(ThinkingRun(parts, broker, stop).run())
    try:
        await first_failure(replicas, main=learning)
        done.set()
        await asyncio.gather(*replicas)
        return learning.result()
    finally:
        await end((learning, *replicas))


async def _run_next_token(parts: Assembly, stop: asyncio.Event) -> dict[str, Any]:
    from trainer.runs import next_token_run

    return await next_token_run(parts).run_until(stop)


if __name__ == "__main__":
    sys.exit(main())
