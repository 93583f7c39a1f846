"""A rollout replica that computes another function than the learner, beside a sound one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forethought.queue.embedded import EmbeddedRedis
from forethought.run.journal import read_journal
from tests.e2e.processes import Cluster, Process, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

BOTH_NUMBERS = re.compile(
    r"rollout replica (\S+) is quarantined, because it does not compute what the learner computes: over "
    r"\d+ tokens sampled by policy version (\d+), its mean log-prob is (-\d+\.\d+) and the learner's "
    r"(-\d+\.\d+), (\d\.\d+) nats per token apart"
)


@pytest.mark.parametrize(("fault", "staleness"), [("temperature", 0), ("flip", 1)])
async def test_the_run_goes_on_with_the_sound_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, staleness: int
) -> None:
    monkeypatch.setenv("FAULT", fault)
    with EmbeddedRedis() as redis, Cluster(redis.url, tmp_path) as cluster:
        unsound = cluster.rollout("rollout-unsound", module="tests.unsound_rollout")
        sound, reward = cluster.rollout("rollout-sound"), cluster.reward("reward")
        await both_registered(unsound, sound)
        words = (
            "learner.steps=100000",
            f"learner.max_staleness={staleness}",
            "model.dtype=float32",
        )
        learner = cluster.learner("learner", "run", *words)
        found = await eventually(
            "the quarantine",
            lambda: BOTH_NUMBERS.search(learner.log),
            alive=[learner, unsound, sound],
        )
        num_done = cluster.num_steps("run")
        await cluster.reaches("run", num_done + 12, learner, sound, reward)
        told = await eventually("the replica to be told", lambda: unsound.find("(takes no tasks)"))
        assert told
        assert states(cluster) == {id_of(unsound): "quarantined", id_of(sound): ""}
        assert learner.end() == 0
        assert [unsound.end(), sound.end(), reward.end()] == [0, 0, 0]
        assert found[1] == id_of(unsound)
        assert float(found[5]) > 0.1
        rows = cluster.directory("run").read_metrics()
        assert [row["tasks_failed"] for row in rows[-8:]] == [0] * 8
        assert rows[-1]["quarantined"].keys() == {id_of(unsound)}
        assert_nothing_is_learned_from_it_later(cluster, id_of(unsound), int(found[2]))


async def both_registered(*replicas: Process) -> None:
    for replica in replicas:
        await eventually(
            "a replica", lambda replica=replica: replica.find("(gRPC on)"), alive=[replica]
        )


def id_of(replica: Process) -> str:
    return replica.find(r"(rollout-\S+): gRPC on") or ""


def states(cluster: Cluster) -> dict[str, str]:
    words = ("status", "--redis-url", cluster.redis_url, "--run", cluster.run_name, "--json")
    shown = subprocess.check_output([sys.executable, "-m", "forethought.cli", *words])
    replicas = json.loads(shown)["replicas"]
    return {r["id"]: r["state"] for r in replicas if r["kind"] == "rollout"}


def assert_nothing_is_learned_from_it_later(cluster: Cluster, replica: str, version: int) -> None:
    """From the batch on that its version was to train, every result of the replica has failed."""
    learned = [
        record.version - 1
        for record in read_journal(cluster.directory("run").journal)
        for result in record.results
        if result.rollout.replica == replica and result.failure is None
    ]
    assert all(of_version < version for of_version in learned)
