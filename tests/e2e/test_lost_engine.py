"""A rollout replica whose engine hangs or dies: its tasks are another's, and it ends to be restarted."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought import queue
from forethought.queue.embedded import EmbeddedRedis
from tests.e2e.processes import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.mark.parametrize("sampling", ["hang", "die"])
async def test_no_task_is_lost_with_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    monkeypatch.setenv("SAMPLING", sampling)
    with EmbeddedRedis() as redis, Cluster(redis.url, tmp_path) as cluster:
        failing = cluster.rollout(
            "rollout-failing", "hang_timeout_s=3", module="tests.e2e.failing_rollout"
        )
        sound, reward = cluster.rollout("rollout-sound"), cluster.reward("reward")
        learner = cluster.learner("learner", "run", "learner.steps=12")
        await cluster.reaches("run", 12, sound, reward)
        assert learner.wait() == 0
        assert failing.wait() == 1
        summary = cluster.summary("run")
        assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, 0)
        broker = queue.connect(redis.url, cluster.run_name)
        assert await broker.dead_letters() == []
        await broker.close()
        reason = "2 tasks have not advanced for" if sampling == "hang" else "the device failed"
        assert reason in failing.log.splitlines()[-1]
        assert "Traceback" not in failing.log
        assert [sound.end(), reward.end()] == [0, 0]
