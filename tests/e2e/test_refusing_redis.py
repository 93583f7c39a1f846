"""Whole runs at a Redis that refuses: for a moment, for longer than the learner waits, or at its stop.

No learner here writes a checkpoint of its own accord before its end.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import BATCH_TASKS, Cluster, Process, eventually
from tests.redis_server import REFUSALS, Admin, admin_of, administered_redis, alone, failed_over

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

ENDLESS = ("learner.steps=100000", "checkpoint.every_steps=100000")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Redis whose administrator is the test, a rollout and a reward replica."""
    with (
        tempfile.TemporaryDirectory() as folder,
        administered_redis(Path(folder)) as url,
        Cluster(url, tmp_path_factory.mktemp("refusing")) as started,
    ):
        replicas = [started.rollout("rollout"), started.reward("reward")]
        yield started
        for replica in replicas:
            assert replica.end() == 0, replica.describe()


@pytest.fixture
async def admin(cluster: Cluster) -> AsyncIterator[Admin]:
    async with admin_of(cluster.redis_url) as client:
        yield client


def assert_saved(cluster: Cluster, run: str) -> None:
    """The checkpoint of the last step in the metrics, which lose none."""
    steps = [row["step"] for row in cluster.directory(run).read_metrics()]
    assert steps == [*range(1, steps[-1] + 1)]
    newest = cluster.directory(run).latest_checkpoint()
    assert newest is not None
    assert newest.name == f"step-{steps[-1]:06d}"


async def test_refusals_are_ridden_out(cluster: Cluster, admin: Admin) -> None:
    learner = cluster.learner("learner-ridden", "ridden", *ENDLESS)
    for code in ("MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN", "BUSY"):
        await cluster.reaches("ridden", cluster.num_steps("ridden") + 2, *cluster.processes)
        async with REFUSALS[code](admin):
            refused = len(learner.log)
            await eventually(
                f"{code} to be noticed",
                lambda start=refused: "refuses for now" in learner.log[start:],  # type: ignore[misc]
                alive=cluster.processes,
            )
    await cluster.reaches("ridden", cluster.num_steps("ridden") + 2, *cluster.processes)
    assert learner.end() == 0
    summary = cluster.summary("ridden")
    assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, 0)
    assert "reached again after an outage of" in learner.log
    for process in cluster.processes:
        assert "Traceback" not in process.log, process.describe()


async def test_past_its_patience_a_learner_saves_what_it_has_learned(
    cluster: Cluster, admin: Admin
) -> None:
    words = (*ENDLESS, "redis.patience_s=1")
    learner = cluster.learner("learner-impatient", "impatient", *words)
    await cluster.reaches("impatient", 3, learner)
    async with failed_over(admin):
        assert learner.wait(60.0) == 1
    assert_saved(cluster, "impatient")
    assert "READONLY" in learner.log.splitlines()[-1]
    assert "Traceback" not in learner.log
    num_steps = cluster.num_steps("impatient") + 2
    again = cluster.learner("learner-patient", "impatient", f"learner.steps={num_steps}")
    await cluster.reaches("impatient", num_steps, again)
    assert again.wait() == 0
    summary = cluster.summary("impatient")
    assert (summary["lost"], summary["duplicated"]) == (0, 0)
    assert summary["tasks_trained"] == num_steps * BATCH_TASKS


async def test_a_refusal_does_not_hold_up_a_stop(cluster: Cluster, admin: Admin) -> None:
    learner = cluster.learner("learner-stopped", "stopped", *ENDLESS)
    await cluster.reaches("stopped", 3, learner)
    async with alone(admin):
        await eventually("the refusal", lambda: "NOREPLICAS" in learner.log, alive=[learner])
        assert learner.end() == 0, learner.describe()
    assert_saved(cluster, "stopped")
    assert cluster.summary("stopped")["replicas"] == {}


async def test_a_full_memory_before_the_first_task_is_waited_out(
    cluster: Cluster, admin: Admin
) -> None:
    await admin.set("someone-else's", bytes(48 << 20))
    await admin.config_set("maxmemory", 48 << 20)
    learner = cluster.learner("learner-waiting", "waiting", "learner.steps=2")
    await eventually("OOM", lambda: "refuses for now: OOM" in learner.log, alive=[learner])
    assert "admission waits while its memory is full" in learner.log
    await admin.delete("someone-else's")
    assert learner.wait(60.0) == 0
    assert cluster.summary("waiting")["tasks_trained"] == 2 * BATCH_TASKS


async def test_too_small_a_memory_and_one_that_evicts_are_refused(
    cluster: Cluster, admin: Admin
) -> None:
    await admin.config_set("maxmemory", 500_000)
    assert (await refused(cluster, "learner-small")).startswith(
        "trainer: Redis's maxmemory is 500,000 bytes; this run may put "
    )
    await admin.config_set("maxmemory", 1 << 30)
    await admin.config_set("maxmemory-policy", "allkeys-lfu")
    assert "expected noeviction" in await refused(cluster, "learner-evicted")
    await admin.config_set("maxmemory", 0)


async def refused(cluster: Cluster, name: str) -> str:
    """The last line of a learner that is refused."""
    learner: Process = cluster.learner(name, name)
    assert learner.wait(60.0) == 2
    return learner.log.splitlines()[-1]
