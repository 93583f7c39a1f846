"""A run whose rollout replicas sample with vLLM, and the fate of vLLM's own processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from forethought.run.journal import read_journal
from tests import vllm_engines
from tests.e2e.processes import Cluster, Process, eventually

pytestmark = [pytest.mark.e2e, *vllm_engines.MARKS]

RUN = "run"
VLLM = ("engine=vllm", "vllm.kv_cache_memory_bytes=33554432")


async def test_replicas_leave_no_processes_and_the_run_continues(
    redis_url: str, tmp_path: Path
) -> None:
    with Cluster(redis_url, tmp_path, "vllm") as cluster:
        reward = cluster.reward("reward")
        killed, stopped = (cluster.rollout(n, *VLLM, fresh=True) for n in ("killed", "stopped"))
        learner = cluster.learner("learner", RUN, "learner.steps=100000")
        processes = (reward, killed, stopped, learner)
        await eventually("both sample", lambda: have_sampled(cluster), 240, alive=processes)

        cores = cores_of(killed)
        killed.kill()
        assert await ended(cores, within_s=10.0), "vLLM lives on after a replica that was killed"
        step = cluster.num_steps(RUN)
        await cluster.reaches(RUN, step + 2, reward, stopped, learner)

        cores = cores_of(stopped)
        assert stopped.end() == 0
        assert await ended(cores, within_s=0.0)
        assert learner.end() == 0
        summary = cluster.summary(RUN)
        assert (summary["lost"], summary["duplicated"]) == (0, 0)


def have_sampled(cluster: Cluster) -> bool:
    """Whether thoughts of two replicas have been trained on."""
    if not cluster.num_steps(RUN):
        return False
    records = read_journal(cluster.directory(RUN).journal)
    return len({result.rollout.replica for record in records for result in record.results}) > 1


def cores_of(replica: Process) -> list[psutil.Process]:
    """vLLM's processes of a sampling replica; at least one."""
    cores = [
        process
        for process in psutil.Process(replica.pid).children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
    ]
    assert cores
    return cores


async def ended(processes: list[psutil.Process], within_s: float) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=within_s)
    return not alive
