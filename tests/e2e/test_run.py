"""Whole runs with real processes, a real Redis and real gRPC, and every way to disturb them.

Two rollout replicas and a reward replica serve all tests of this file, one learner after another: that
replicas follow the current owner of the run is part of the test.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis.asyncio

from forethought import queue
from forethought.queue.embedded import EmbeddedRedis
from forethought.queue.interface import Broker, Stage
from forethought.queue.keys import GROUP, Keys
from forethought.run.journal import JournalRecord, read_journal
from forethought.types import ScoredRollout
from forethought.weights.grpc_weights import WeightsClient
from tests.e2e import plain
from tests.e2e.processes import BATCH_TASKS, BEARER, GROUP_SIZE, Cluster, Process, eventually
from tests.redis_loss import lose_everything

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

ENDLESS = "learner.steps=100000"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Redis, two rollout replicas and a reward replica."""
    directory = tmp_path_factory.mktemp("e2e")
    with EmbeddedRedis() as server, Cluster(server.url, directory) as started:
        replicas = [started.rollout("rollout-a"), started.rollout("rollout-b")]
        replicas.append(started.reward("reward"))
        yield started
        for replica in replicas:
            replica.signal(signal.SIGTERM)
        assert [replica.wait() for replica in replicas] == [0, 0, 0]


@pytest.fixture
async def broker(cluster: Cluster) -> AsyncIterator[Broker]:
    """The run's own view of its Redis."""
    connected = queue.connect(cluster.redis_url, cluster.run_name)
    yield connected
    await connected.close()


def records_of(cluster: Cluster, run: str) -> list[JournalRecord]:
    return list(read_journal(cluster.directory(run).journal))


def results_of(cluster: Cluster, run: str) -> list[ScoredRollout]:
    return [result for record in records_of(cluster, run) for result in record.results]


def replica_id(process: Process) -> str | None:
    return process.find(r"((?:rollout|reward)-\S+): gRPC on")


def assert_whole(
    cluster: Cluster, run: str, num_steps: int, num_failed: int = 0, num_open: int = 0
) -> dict[str, Any]:
    """Every batch is recorded, in order, with exactly its tasks; lost 0, duplicated 0.

    ``num_open`` tasks were admitted and not yet trained on when the run was stopped.
    """
    records = records_of(cluster, run)
    assert [record.batch for record in records] == list(range(num_steps))
    assert [record.version for record in records] == list(range(1, num_steps + 1))
    assert all(older.epoch <= newer.epoch for older, newer in pairwise(records))
    ids = [r.rollout.task.task_id for record in records for r in record.results]
    assert ids == list(range(num_steps * BATCH_TASKS))
    assert [row["step"] for row in cluster.directory(run).read_metrics()] == [
        *range(1, num_steps + 1)
    ]
    summary = cluster.summary(run)
    assert (summary["steps"], summary["policy_version"]) == (num_steps, num_steps)
    assert (summary["lost"], summary["duplicated"]) == (0, 0)
    assert summary["tasks_admitted"] == num_steps * BATCH_TASKS + num_open
    assert summary["tasks_failed"] == num_failed
    assert summary["tasks_trained"] == num_steps * BATCH_TASKS - num_failed
    return summary


def assert_on_policy(records: list[JournalRecord]) -> None:
    """At S = 0 a batch is admitted, sampled and scored by the version that trains on it."""
    for record in records:
        for result in record.results:
            task = result.rollout.task
            assert (task.epoch, task.batch) == (record.epoch, record.batch)
            assert task.min_version == result.policy_version == record.version - 1
            thoughts = [t for group in result.rollout.thoughts_KG for t in group]
            assert len(thoughts) == GROUP_SIZE
            assert {s.version for t in thoughts for s in t.version_spans} == {record.version - 1}


async def test_a_run_to_its_end(cluster: Cluster, broker: Broker) -> None:
    num_steps = 16
    learner = cluster.learner("learner-clean", "clean", f"learner.steps={num_steps}")
    await cluster.reaches("clean", num_steps, *cluster.processes[-4:-1])
    assert learner.wait() == 0
    summary = assert_whole(cluster, "clean", num_steps)
    records = records_of(cluster, "clean")
    assert_on_policy(records)
    metrics = cluster.directory("clean").read_metrics()
    assert [row["version"] for row in metrics] == list(range(1, num_steps + 1))
    assert {row["lag_mean"] for row in metrics} == {0.0}
    assert not any(row["skipped"] for row in metrics)
    rollouts = {replica_id(process) for process in cluster.rollouts[:2]}
    assert {r.rollout.replica for r in results_of(cluster, "clean")} == rollouts
    assert_rewards_are_gains(results_of(cluster, "clean"))
    await assert_every_replica_serves(cluster, broker, (summary["epoch"], num_steps))
    await assert_scores_are_those_of_the_checkpoint(cluster, records[-1])


def assert_rewards_are_gains(results: list[ScoredRollout]) -> None:
    spread = []
    for result in results:
        (rewards,), (policy,) = result.rewards_KG, result.policy_logprobs_KG
        (baseline,) = result.baseline_logprobs_K
        assert rewards == pytest.approx([p - baseline for p in policy], abs=1e-5)
        spread.append(max(rewards) - min(rewards))
    assert max(spread) > 0.1  # equal rewards would make the test vacuous


async def assert_every_replica_serves(
    cluster: Cluster, broker: Broker, order: tuple[int, int]
) -> None:
    """According to the registry, and over gRPC to the bytes of the learner's payload."""
    directory = cluster.directory("clean")
    expected = {
        "policy": plain.policy_sha256(directory.model()),
        "baseline": plain.baseline_sha256(directory.model()),
    }
    assert expected["policy"] != expected["baseline"]
    replicas = await broker.replicas()
    assert sorted(replica.kind for replica in replicas) == ["reward", "rollout", "rollout"]
    for replica in replicas:
        assert replica.serving == dict.fromkeys(replica.models, order)
        async with WeightsClient(replica.address, 1 << 20, BEARER) as client:
            held = await client.status(5.0)
        assert {name: m.sha256 for name, m in held.items()} == {
            name: expected[name] for name in replica.models
        }


async def assert_scores_are_those_of_the_checkpoint(
    cluster: Cluster, record: JournalRecord
) -> None:
    """The live service's log-probs against plain transformers on the checkpoint, 1e-5."""
    reward = next(process for process in cluster.processes if process.name == "reward")
    url = reward.find(r"HTTP on (http://\S+),")
    assert url is not None
    items = [plain.score_item(result) for result in record.results]
    headers = dict(BEARER.header())
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20.0) as client:
        reply = await client.post("/v1/score", json={"objective": "rlp", "items": items})
        pages = [await client.get(path) for path in ("/docs", "/openapi.json", "/v1/models")]
    assert [page.status_code for page in (reply, *pages)] == [200] * 4
    assert "/v1/score" in pages[1].json()["paths"]
    assert pages[2].json()["policy"]["version"] == record.version
    model = cluster.directory("clean").model()
    for got, result in zip(reply.json()["items"], record.results, strict=True):
        policy, baseline = plain.likelihoods(model, result)
        assert got["policy_logprobs"] == pytest.approx(policy, abs=1e-5)
        assert got["baseline_logprob"] == pytest.approx(baseline, abs=1e-5)
        assert got["rewards"] == pytest.approx([p - baseline for p in policy], abs=2e-5)
        assert got["policy_version"] == got["baseline_version"] == record.version


async def test_one_owner_then_stopped_continued_and_flushed(
    cluster: Cluster, broker: Broker
) -> None:
    await one_learner_per_directory_and_per_run(cluster, broker)
    learner = cluster.processes[-1]
    await cluster.reaches("stopped", 4, learner)
    assert learner.end() == 0
    num_done = cluster.num_steps("stopped")
    first_epoch = assert_whole(cluster, "stopped", num_done, num_open=BATCH_TASKS)["epoch"]
    latest = cluster.directory("stopped").latest_checkpoint()
    assert latest is not None
    assert latest.name == f"step-{num_done:06d}"
    learner = cluster.learner("learner-continued", "stopped", f"learner.steps={num_done + 20}")
    await cluster.reaches("stopped", num_done + 3, learner)
    await flush(cluster)
    num_flushed = cluster.num_steps("stopped")
    assert num_flushed < num_done + 19, "Redis was flushed too late to disturb anything"
    assert learner.wait(60.0) == 0
    assert assert_whole(cluster, "stopped", num_done + 20)["epoch"] > first_epoch
    assert_on_policy(records_of(cluster, "stopped"))
    assert "Redis may have lost data" in learner.log
    assert await broker.current_epoch() == cluster.summary("stopped")["epoch"]


async def one_learner_per_directory_and_per_run(cluster: Cluster, broker: Broker) -> None:
    """Two start on one directory: one is refused. A third, elsewhere, supersedes the other."""
    rivals = [cluster.learner(f"learner-rival-{i}", "rivals", ENDLESS) for i in (0, 1)]
    refused = await eventually(
        "one of two learners to be refused",
        lambda: [rival for rival in rivals if rival.exit_status is not None],
    )
    (owner,) = [rival for rival in rivals if rival not in refused]
    assert refused[0].exit_status == 2
    assert "is owned by another learner" in refused[0].log
    assert "Traceback" not in refused[0].log
    await cluster.reaches("rivals", 1, owner)
    epoch = await broker.current_epoch()
    cluster.learner("learner-newer", "stopped", ENDLESS)
    assert owner.wait(60.0) == 3
    assert f"epoch {epoch + 1} has taken over " in owner.log
    assert "Traceback" not in owner.log


async def flush(cluster: Cluster) -> None:
    """Redis loses everything: tasks, epoch, registry, manifest."""
    await lose_everything(cluster.redis_url)


async def test_replicas_and_the_learner_come_and_go(cluster: Cluster, broker: Broker) -> None:
    learner = cluster.learner("learner-killed", "chaos", ENDLESS)
    drained, killed = cluster.rollout("rollout-drained"), cluster.rollout("rollout-killed")
    await eventually(
        "replicas started by hand to contribute",
        lambda: have_worked(broker, drained, killed),
        alive=[learner, drained, killed],
    )
    assert drained.end() == 0
    assert replica_id(drained) not in {replica.replica_id for replica in await broker.replicas()}
    await kill_while_it_holds_work(cluster, killed)
    num_done = cluster.num_steps("chaos")
    await cluster.reaches("chaos", num_done + 4, learner)
    learner.kill()
    num_steps = cluster.num_steps("chaos") + 5
    epoch = await broker.current_epoch()
    last = cluster.learner("learner-again", "chaos", f"learner.steps={num_steps}")
    await cluster.reaches("chaos", num_steps, last)
    assert last.wait() == 0
    assert assert_whole(cluster, "chaos", num_steps)["epoch"] == epoch + 1
    assert_on_policy(records_of(cluster, "chaos"))
    assert {record.epoch for record in records_of(cluster, "chaos")} == {epoch, epoch + 1}
    contributors = {r.rollout.replica for r in results_of(cluster, "chaos")}
    assert contributors == {replica_id(process) for process in cluster.rollouts}
    assert not await broker.dead_letters()


async def have_worked(broker: Broker, *processes: Process) -> bool:
    """Whether each has published a result, according to its registration."""
    done = {r.replica_id: r.num_tasks_done for r in await broker.replicas()}
    return all(done.get(replica_id(process) or "", 0) > 0 for process in processes)


async def test_replicas_move_to_a_run_that_was_made_new(cluster: Cluster, broker: Broker) -> None:
    """Redis and run directory are new; the replicas hold the same or a later epoch of another run."""
    ids = [replica_id(process) for process in cluster.processes[:3]]  # those that all tests share
    before = {replica: policy for replica, (_, policy) in (await served(broker)).items()}
    assert min(before[replica] for replica in ids) > (1, 3), "earlier tests have trained"
    await lose_everything(cluster.redis_url)
    learner = cluster.learner("learner-new", "new", "learner.steps=3")
    assert learner.wait(60.0) == 0, learner.describe()
    assert_whole(cluster, "new", 3)
    run_id = cluster.directory("new").run_id()
    assert await served(broker) == dict.fromkeys(ids, (run_id, (1, 3)))
    assert {task.run_id for task in (r.rollout.task for r in results_of(cluster, "new"))} == {
        run_id
    }
    for process in cluster.rollouts[:2]:
        assert process.find(rf"(gives way to that of run {run_id}, epoch 1)")


async def served(broker: Broker) -> dict[str, tuple[str, tuple[int, int]]]:
    """By replica, the run and the policy version that its registration names."""
    return {r.replica_id: (r.run_id, r.serving["policy"]) for r in await broker.replicas()}


async def kill_while_it_holds_work(cluster: Cluster, process: Process) -> None:
    """Freeze it until that is while it has leased a task, and kill it."""

    async def freeze() -> bool:
        process.signal(signal.SIGSTOP)
        if await entries_of(cluster, process):
            return True
        process.signal(signal.SIGCONT)
        return False

    await eventually("the replica to be frozen while it holds work", freeze)
    process.kill()


async def entries_of(cluster: Cluster, process: Process) -> list[Any]:
    """Tasks leased to a replica, according to Redis."""
    stream, name = Keys(cluster.run_name).stream(Stage.TASKS), replica_id(process)
    async with redis.asyncio.from_url(cluster.redis_url) as client:
        return list(await client.xpending_range(stream, GROUP, "-", "+", 10, name))


async def test_hung_replicas_fail_tasks_and_staleness_is_bounded(cluster: Cluster) -> None:
    """S = 1. All rollout replicas hang during the first batches, and then drop what is left of them."""
    rollouts = cluster.rollouts[:2]
    for process in rollouts:
        process.signal(signal.SIGSTOP)
    num_steps = 14
    words = ("learner.max_staleness=1", "learner.task_timeout_s=2")
    learner = cluster.learner("learner-stale", "stale", *words, f"learner.steps={num_steps}")
    await cluster.reaches("stale", 2, learner)
    for process in rollouts:
        process.signal(signal.SIGCONT)
    assert learner.wait(60.0) == 0
    metrics = cluster.directory("stale").read_metrics()
    num_failed = sum(row["tasks_failed"] for row in metrics)
    assert 2 * BATCH_TASKS <= num_failed < num_steps * BATCH_TASKS
    assert [row["skipped"] for row in metrics[:2]] == [True, True]
    assert_whole(cluster, "stale", num_steps, num_failed)
    failures = {result.failure for result in records_of(cluster, "stale")[0].results}
    assert failures == {"no result within learner.task_timeout_s = 2.0 s"}
    assert [row["tasks_failed"] for row in metrics[5:]] == [0] * (num_steps - 5), "it has caught up"
    lags = [row["lag_mean"] for row in metrics if "lag_mean" in row]
    assert all(0.0 <= lag <= 1.0 for lag in lags)
    assert max(lags) > 0.0, "sampling and learning never overlapped"
    assert Path(cluster.summary("stale")["checkpoint"]).is_dir()
