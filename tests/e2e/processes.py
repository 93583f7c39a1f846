"""Real processes for end-to-end tests: started, watched, frozen, killed, and never orphaned.

Every wait is a bounded poll of something that the system exposes: a log, ``metrics.jsonl``, the
registry. A failed wait reports what it waited for and the state of the processes it depends on.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

from forethought.auth import Bearer, Tokens
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import PLAIN, write_corpus
from forethought.orphan import death_with_parent
from forethought.run.directory import RunDirectory
from tests.e2e import forked

T = TypeVar("T")

BATCH_TASKS = 4
GROUP_SIZE = 4
LEASE_S = 2.0
HEARTBEAT_S = 0.5
START_TIMEOUT_S = 120.0
"""Enough for a process to import torch while three others do the same on two busy cores."""

TOKEN = "the-token-of-every-run-here"
BEARER = Bearer(Tokens((TOKEN,)))

_POLL_S = 0.05
_REPLICA_WORDS = (f"lease_s={LEASE_S}", f"heartbeat_s={HEARTBEAT_S}", "num_threads=1")


class Process:
    """One ``python -m MODULE`` with its log; it gets the run's token by default.

    Unless ``fresh``, it is forked from a server that has loaded the libraries.
    """

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        log: Path,
        token: str = TOKEN,
        *,
        fresh: bool = False,
    ) -> None:
        self.name, self._log = log.stem, log
        env = os.environ | {"OMP_NUM_THREADS": "1", "FORETHOUGHT_AUTH_TOKEN": token}
        self._child: subprocess.Popen[bytes] | forked.Forked
        if forked.IS_POSSIBLE and not fresh:
            log.touch()
            self._child = forked.Forked(module, words, log, env)
            return
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=death_with_parent(),
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def log(self) -> str:
        """The whole log."""
        return self._log.read_text(encoding="utf-8")

    @property
    def exit_status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._child.poll()

    def find(self, pattern: str) -> str | None:
        """The first group of the first match in the log, or None (yet)."""
        found = re.search(pattern, self.log)
        return found[1] if found else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._child.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the process to exit by itself; returns the exit status."""
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.describe()} did not end within {timeout_s} s")

    def end(self) -> int:
        """Send SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Send SIGKILL, which also ends a frozen process."""
        self._child.kill()
        self._child.wait()

    def describe(self) -> str:
        """Name, state and the tail of the log."""
        state = "alive" if self.exit_status is None else f"exit status {self.exit_status}"
        last = "\n    ".join(self.log.splitlines()[-15:])
        return f"{self.name} ({state}):\n    {last}"


class Cluster:
    """The processes of one Redis run; leaving the context ends all of them."""

    def __init__(self, redis_url: str, directory: Path, run_name: str = "e2e") -> None:
        self.redis_url, self.run_name, self._directory = redis_url, run_name, directory
        self.processes: list[Process] = []
        self.rollouts: list[Process] = []
        self.corpus = write_corpus(
            directory / "corpus", num_documents=500, seed=0, mixture=PLAIN, num_heldout=1
        ).train

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes:
            if process.exit_status is None:
                process.kill()

    def rollout(
        self, name: str, *more: str, fresh: bool = False, module: str = "services.rollout"
    ) -> Process:
        """Start a rollout replica; it takes two tasks at a time, so that two replicas share a batch."""
        words = [f"rollout.{word}" for word in (*_REPLICA_WORDS, "max_batch_tasks=2", *more)]
        process = self._start(module, name, words, fresh)
        self.rollouts.append(process)
        return process

    def reward(self, name: str) -> Process:
        """Start a reward replica on a free HTTP port, which it logs."""
        words = [f"reward.{word}" for word in (*_REPLICA_WORDS, "http_port=0")]
        return self._start("services.reward", name, words)

    def learner(self, name: str, run: str, *words: str, fresh: bool = False) -> Process:
        """Start a learner on the run directory ``run``."""
        return self._start("trainer", name, [*self._run_words(run), *words], fresh)

    def whole_run(self, run: str, *words: str) -> None:
        """Do a whole run in one process; for tests of its results, not of its processes."""
        process = self._start("services.single", run, [*self._run_words(run), *words])
        assert process.wait(START_TIMEOUT_S) == 0, process.describe()

    def _run_words(self, run: str) -> list[str]:
        return [
            f"run.directory={self.directory(run).root}",
            f"model.path={base_model()}",
            f"corpus.path={self.corpus}",
            "corpus.window_tokens=32",
            f"sampling.group_size={GROUP_SIZE}",
            "sampling.max_thought_tokens=9",
            f"learner.batch_tasks={BATCH_TASKS}",
            "checkpoint.every_steps=3",
        ]

    def directory(self, run: str) -> RunDirectory:
        """The run directory ``run``."""
        return RunDirectory(self._directory / run)

    def num_steps(self, run: str) -> int:
        """Number of steps in ``metrics.jsonl``."""
        metrics = self.directory(run).read_metrics()
        return int(metrics[-1]["step"]) if metrics else 0

    def summary(self, run: str) -> dict[str, Any]:
        """The summary of a run."""
        summary: dict[str, Any] = json.loads(self.directory(run).summary.read_text())
        return summary

    async def reaches(self, run: str, step: int, *needed: Process) -> None:
        """Wait until ``step`` steps have finished; fails early if a needed process ends."""
        await eventually(f"step {step} of {run}", lambda: self.num_steps(run) >= step, alive=needed)

    def _start(self, module: str, name: str, words: Sequence[str], fresh: bool = False) -> Process:
        common = [f"redis.url={self.redis_url}", f"run.name={self.run_name}"]
        log = self._directory / f"{name}.log"
        process = Process(module, [*common, *words], log, fresh=fresh)
        self.processes.append(process)
        return process


async def eventually(
    what: str,
    look: Callable[[], T | Awaitable[T]],
    timeout_s: float = START_TIMEOUT_S,
    alive: Sequence[Process] = (),
) -> T:
    """Poll ``look`` until it returns a true value, and return it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        dead = [process for process in alive if process.exit_status is not None]
        seen = look()
        value = await seen if inspect.isawaitable(seen) else seen
        if value:
            return value
        if dead or time.monotonic() > deadline_s:
            why = "a process ended" if dead else f"not within {timeout_s} s"
            pytest.fail("\n".join([f"{what}: {why}", *(p.describe() for p in dead or alive)]))
        await asyncio.sleep(_POLL_S)
