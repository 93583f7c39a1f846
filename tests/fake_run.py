"""Fakes of the processes that ``up`` starts: they do what ``up`` relies on, and nothing else.

``FAKE_TRAINER`` selects the behaviour of the trainer: train (the default), refuse, fail or deaf.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from forethought.config import Settings, load_settings
from forethought.errors import InvalidInput
from forethought.queue import connect
from forethought.run.directory import RunDirectory
from forethought.types import Replica


def service(kind: str) -> None:
    """Register, wait for SIGTERM, drain."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    settings = _settings()
    port = settings.reward.http_port if kind == "reward" else settings.rollout.grpc_port
    name = f"{kind}-{os.getpid()}"
    replica = Replica(name, kind, f"127.0.0.1:{port}", ("policy",), {"policy": (1, 2)})
    asyncio.run(_announce(settings, replica))
    _log("services", "WARNING", f"registered late, {os.getpid()} ms")
    signal.sigwait([signal.SIGTERM])
    print("drained at", time.time(), flush=True)


def trainer() -> None:
    """Steps every few milliseconds; stops on SIGTERM; writes a checkpoint and a summary."""
    behaviour = os.environ.get("FAKE_TRAINER", "train")
    if behaviour == "refuse":
        print(InvalidInput("trainer: got a cat, expected a dog; buy one"), file=sys.stderr)
        sys.exit(2)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    settings = _settings()
    directory = RunDirectory(settings.run.directory)
    print("model", settings.model.path, "redis", settings.redis.url, flush=True)
    _log("trainer.assembly", "INFO", "corpus: 12 windows of 32 tokens: books 12")
    _log("trainer", "INFO", "precision: float32 (as configured)")
    _log("trainer.assembly", "INFO", "something else")
    step = _steps_done(directory)
    with directory.metrics.open("a") as metrics:
        while step < settings.learner.steps and (not asked or behaviour == "deaf"):
            step += 1
            metrics.write(json.dumps(_metrics(step)) + "\n")
            metrics.flush()
            _log("trainer.thinking_run", "WARNING", f"step {step}: thoughts shrink: floor them")
            time.sleep(0.02)
    (directory.checkpoint(step) / "model").mkdir(parents=True, exist_ok=True)
    summary = {"steps": step, "policy_version": step, "lost": 0, "duplicated": 0, "seconds": 61.0}
    summary |= {"done": step >= settings.learner.steps, "tokens": step * 100}
    summary |= {"replicas": {"rollout-a": {"serving": {"policy": [1, step]}}}}
    if behaviour == "fail":
        summary |= {"done": False, "failure": "nothing was learned: no memory"}
    directory.summary.write_text(json.dumps(summary))
    print("stopped at", time.time(), flush=True)
    sys.exit(4 if behaviour == "fail" else 0)


def base() -> None:
    """Create an empty base/model."""
    settings = _settings()
    assert settings.model.path == ""
    directory = RunDirectory(settings.run.directory / "base" / "run")
    directory.root.mkdir(parents=True)
    directory.metrics.write_text(json.dumps({"step": settings.base.steps, "nll": 3.0}) + "\n")
    (settings.run.directory / "base" / "model").mkdir()
    print("base made", flush=True)


def _log(logger: str, level: str, message: str) -> None:
    """A record as forethought.telemetry.log writes it."""
    print(f"14:03:59.120 fake {level} {logger}: {message}", file=sys.stderr, flush=True)


def _settings() -> Settings:
    assert sys.argv[1] == "--config"
    return load_settings(Path(sys.argv[2]), sys.argv[3:])


async def _announce(settings: Settings, replica: Replica) -> None:
    broker = connect(settings.redis.url, settings.run.name)
    await broker.announce(replica, 60.0)
    await broker.close()


def _steps_done(directory: RunDirectory) -> int:
    latest = directory.latest_checkpoint()
    return int(latest.name.removeprefix("step-")) if latest else 0


def _metrics(step: int) -> dict[str, float]:
    values = {"reward_mean": step / 100, "information_gain": step / 50, "tasks_failed": 0}
    return {"step": step, "time_unix_s": time.time(), "tokens": step * 100, **values}
