"""RPT with real processes: predictions after thoughts, no likelihoods, and replacements within a batch."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from forethought.queue.embedded import EmbeddedRedis
from forethought.run.journal import read_journal
from forethought.types import attempt_of, original_of
from tests.e2e.processes import BATCH_TASKS, GROUP_SIZE, Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NUM_STEPS, FIRST_REPLACED = 10, 3
WORDS = (
    "objective.name=rpt",
    "objective.parameters={prompt = 'plain', positions = 'marked'}",
    "sampling.temperature=0.5",  # groups agree more often
    "filter.zero_variance=true",
    f"filter.replace_from_step={FIRST_REPLACED}",
    "filter.replace_rounds=2",
)


async def test_a_run_of_rpt(tmp_path: Path) -> None:
    with EmbeddedRedis() as server, Cluster(server.url, tmp_path) as cluster:
        replicas = [cluster.rollout("rollout"), cluster.reward("reward")]
        learner = cluster.learner("learner", "rpt", f"learner.steps={NUM_STEPS}", *WORDS)
        await cluster.reaches("rpt", NUM_STEPS, *replicas)
        assert learner.wait() == 0
        for replica in replicas:
            replica.signal(signal.SIGTERM)
        assert [replica.wait() for replica in replicas] == [0, 0]
        summary = cluster.summary("rpt")
        records = list(read_journal(cluster.directory("rpt").journal))
        metrics = cluster.directory("rpt").read_metrics()
    assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, 0)
    assert summary["tasks_admitted"] == NUM_STEPS * BATCH_TASKS
    assert summary["tasks_trained"] == summary["tasks_admitted"] + summary["tasks_replaced"]
    assert [row["version"] for row in metrics] == list(range(1, NUM_STEPS + 1))
    for record, row in zip(records, metrics, strict=True):
        ids = [result.rollout.task.task_id for result in record.results]
        first = record.batch * BATCH_TASKS
        assert ids[:BATCH_TASKS] == list(range(first, first + BATCH_TASKS))
        replaced = ids[BATCH_TASKS:]
        assert row["tasks_replaced"] == len(replaced)
        assert {original_of(task_id) for task_id in replaced} <= set(ids[:BATCH_TASKS])
        assert all(1 <= attempt_of(task_id) <= 2 for task_id in replaced)
        assert record.batch + 1 >= FIRST_REPLACED or not replaced
        for result in record.results:
            ((rewards, thoughts),) = zip(result.rewards_KG, result.rollout.thoughts_KG, strict=True)
            assert set(rewards) <= {0.0, 1.0}
            assert len(thoughts) == GROUP_SIZE
            assert all(t.num_prediction_tokens == t.closed for t in thoughts)
            assert result.policy_logprobs_KG == ((),)
            assert {s.version for t in thoughts for s in t.version_spans} == {record.batch}
            # Replacements are ordinary tasks: on-policy, and graded against the ground truth.
            right = result.rollout.task.positions_K[0].target_ids_H
            assert rewards == tuple(float(t.prediction_ids == right) for t in thoughts)
    rewards_of = [
        r for record in records for result in record.results for r in result.rewards_KG[0]
    ]
    assert {0.0, 1.0} <= set(rewards_of)
    assert summary["tasks_replaced"] > 0
