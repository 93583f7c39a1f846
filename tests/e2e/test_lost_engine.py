"""A rollout replica whose engine hangs or dies: its tasks are another's, and it ends to be restarted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from forethought import queue
from forethought.queue.embedded import EmbeddedRedis
from tests.e2e.processes import Cluster, Process, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.mark.parametrize("failure", ["hang", "die"])
async def test_no_task_is_lost_with_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setenv("FAILURE", failure)
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
        reason = "2 tasks have not advanced for" if failure == "hang" else "the device failed"
        assert reason in failing.log.splitlines()[-1]
        assert "Traceback" not in failing.log
        assert [sound.end(), reward.end()] == [0, 0]


async def test_the_weights_of_a_killed_replica_do_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILURE", "stuck")
    with EmbeddedRedis() as redis, Cluster(redis.url, tmp_path) as cluster:
        stuck = cluster.rollout("rollout-stuck", module="tests.e2e.failing_rollout")
        cluster.reward("reward")
        cluster.learner("learner", "run", "learner.steps=100000")
        await eventually("a push that is not applied", lambda: stuck.find("(stuck)"))
        assert any(path.name == "model.safetensors" for path in staged_by(stuck))
        stuck.kill()
        assert staged_by(stuck)
        heir = cluster.rollout("rollout-heir")
        await eventually("the heir", lambda: staged_by(heir), alive=[heir])
        assert not staged_by(stuck)


def staged_by(process: Process) -> list[Path]:
    """The files that a replica has staged; all processes of this machine share the place."""
    replica_id = process.find(r"(rollout-\S+): gRPC on")
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    return [
        file
        for folder in place.glob(f"forethought-weights-*/weights-{replica_id}")
        for file in folder.rglob("*")
    ]
