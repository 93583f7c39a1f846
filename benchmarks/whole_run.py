"""What a real run costs: CPU seconds of all its processes between two steps, and their peak memory.

``forethought up`` runs as a user would start it, with its embedded Redis, one rollout replica, one reward
replica and the learner, each with one torch thread. From outside, the CPU times (user and system) of all of
them are read when the learner reports a step: the first, which warms everything up, and the last. Starting,
loading and the final checkpoint are outside that interval; sampling, queues, scoring, learning, publishing
weights and all polling are inside it.

Design: ``learner.max_staleness`` is 0, so nothing of another step falls into the interval. The price: the
processes take turns, and a run looks slower by the clock than it has to be.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from forethought.cli.plan import ALLOCATOR
from forethought.run.directory import RunDirectory

ENVIRONMENT = {
    **ALLOCATOR,
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Of every process on either side: one thread, and the allocator settings that ``up`` gives its own."""

_POLL_S = 0.02
_ROLES = {"services.rollout": "rollout", "services.reward": "reward", "trainer": "learner"}
_FIXED = (
    "model.device=cpu",
    "rollout.replicas=1",
    "rollout.device=cpu",
    "reward.replicas=1",
    "reward.device=cpu",
    "reward.http_port=0",
    "learner.max_staleness=0",
    "learner.no_think_every_steps=0",
    "checkpoint.every_steps=1_000_000_000",
)


@dataclass(frozen=True, slots=True)
class RunCost:
    """Means over the measured steps: CPU seconds by process; and peak resident memory by process.

    ``thought_tokens`` is the mean length of the sampled thoughts.

    Example:
        ``RunCost({"learner": 6.5, "rollout": 2.0}, {"learner": 1 << 30}, thought_tokens=32.0)``
    """

    cpu_s: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    thought_tokens: float

    @property
    def total_cpu_s(self) -> float:
        """CPU seconds of a step, in all processes together."""
        return sum(self.cpu_s.values())


def cost_of_steps(overrides: Sequence[str], directory: Path, num_steps: int) -> RunCost:
    """Run ``1 + num_steps`` steps in an empty ``directory`` and measure all but the first.

    Raises:
        RuntimeError: the run ended early; with the end of its output.
    """
    command = [sys.executable, "-m", "forethought.cli", "up", *_FIXED, *overrides]
    command += [f"run.directory={directory}", f"learner.steps={1 + num_steps}"]
    directory.mkdir(parents=True)
    output = directory / "output.txt"
    with output.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT)
    run = RunDirectory(directory)
    try:
        before = _at_step(1, run, child)
        after = _at_step(1 + num_steps, run, child)
        peaks = _peak_bytes(child.pid)
    except RuntimeError as error:
        raise RuntimeError(f"{error}:\n{output.read_text()[-3000:]}") from None
    finally:
        child.kill()  # its children die with it
        child.wait()
    lengths = [step["thought_tokens_mean"] for step in run.read_metrics()[1:]]
    return RunCost(
        {role: (after[role] - before[role]) / num_steps for role in after}, peaks, fmean(lengths)
    )


def _at_step(step: int, run: RunDirectory, child: subprocess.Popen[Any]) -> Counter[str]:
    """CPU seconds by process at the moment at which a step is reported."""
    while len(run.read_metrics()) < step:
        if child.poll() is not None:
            raise RuntimeError(f"the run ended with status {child.returncode} before step {step}")
        time.sleep(_POLL_S)
    used: Counter[str] = Counter()
    for process, role in _processes(child.pid):
        times = process.cpu_times()
        used[role] += times.user + times.system
    return used


def _processes(pid: int) -> list[tuple[psutil.Process, str]]:
    parent = psutil.Process(pid)
    children = parent.children(recursive=True)
    return [(parent, "supervisor"), *((process, _role(process)) for process in children)]


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    return next((role for module, role in _ROLES.items() if module in words), "redis")


def _peak_bytes(pid: int) -> dict[str, int]:
    return {role: peak_bytes(process.pid) for process, role in _processes(pid)}


def peak_bytes(pid: int) -> int:
    """The highest resident memory that a process has had (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
