"""A learner with next-token loss: no replicas and no reachable Redis, but probes and clean shutdown."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.e2e.processes import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


async def test_a_learner_without_replicas_is_probed_and_stopped_in_order(tmp_path: Path) -> None:
    with Cluster("redis://127.0.0.1:1/0", tmp_path) as cluster:
        words = ("objective.name=ntp", "learner.steps=100000")
        learner = cluster.learner("learner", "run", *words, fresh=True)
        await cluster.reaches("run", 2, learner)
        port = await eventually("its port", lambda: learner.find(r"ops port (\d+)"))
        ready = httpx2.get(f"http://127.0.0.1:{port}/readyz").json()
        assert ready["ready"]
        assert ready["step"] >= 2
        metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        assert "process_resident_memory_bytes" in metrics
        assert learner.end() == 0
        assert cluster.summary("run")["steps"] == cluster.num_steps("run") >= ready["step"]
