"""How a learner ends: staying for replicas that join, and its status when stopped early."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought import queue
from forethought.queue.embedded import EmbeddedRedis
from tests.e2e.processes import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

STOPPED = 75


async def test_a_learner_that_stays_serves_late_replicas_and_a_stopped_one_reports_it(
    tmp_path: Path,
) -> None:
    with EmbeddedRedis() as redis, Cluster(redis.url, tmp_path) as cluster:
        broker = queue.connect(redis.url, cluster.run_name)
        cluster.rollout("rollout", fresh=True)  # as `python -m` starts it, imports included
        cluster.reward("reward")
        words = ("learner.stay=true", f"learner.stopped_status={STOPPED}")
        learner = cluster.learner("learner-stays", "run", "learner.steps=2", *words)
        await eventually(
            "the summary", cluster.directory("run").summary.exists, alive=cluster.processes
        )
        assert cluster.summary("run")["steps"] == 2
        late = cluster.rollout("rollout-late")

        async def serves_the_last_version() -> bool:
            serving = [r.serving.get("policy", (0, 0)) for r in await broker.replicas()]
            return len(serving) == 3 and all(version == 2 for _, version in serving)

        await eventually("weights at the late one", serves_the_last_version, alive=[learner, late])
        assert learner.end() == 0, "it had finished: SIGTERM is not an early stop"
        endless = cluster.learner("learner-endless", "run", "learner.steps=100000", *words)
        await cluster.reaches("run", 4, endless)
        assert endless.end() == STOPPED
        assert cluster.num_steps("run") == cluster.summary("run")["steps"] >= 4
        await broker.close()
