"""A whole run on a real cluster, with every disturbance of its pods.

`make e2e-k8s` runs it, on the cluster of KUBECONFIG, in the namespace `forethought`, which must not
exist before and is deleted afterwards. The cluster's nodes need the images forethought-*:cpu and redis:7.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import fmean

import pytest

from tests.deploy.cluster import Deployment, eventually

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not os.environ.get("E2E_K8S"), reason="only `make e2e-k8s` uses a cluster"),
]

SHIPPED_STEPS = 120
BATCH_TASKS = 32
ENDLESS = 100_000
QUESTION = {
    "objective": "rlp",
    "items": [
        {
            "id": "a",
            "context": "<s> blue crow 5 rest rest *4 rest =",
            "target": " 6",
            "thoughts": [" 5 5 5 6 6", " 1"],
        }
    ],
}


def test_a_run_under_disturbance(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with Deployment(tmp_path) as deployment:
        everything_becomes_ready(deployment)
        the_service_requires_a_token(deployment)
        the_shipped_run_finishes(deployment)
        print(
            f"  {time.monotonic() - started_s:6.1f} s  from nothing to the end of the shipped run"
        )
        a_reward_pod_that_joins_later_gets_weights(deployment)
        a_token_is_added_without_a_restart(deployment)
        it_continues_with_more_steps(deployment)
        replicas_join_and_work(deployment)
        a_rollout_pod_is_replaced(deployment)
        a_killed_learner_resumes(deployment)
        redis_is_replaced(deployment)
        replicas_leave(deployment)
        it_finishes_again(deployment)
        assert deployment.restarts() == 0, "a probe or a crash started a container again"
    print(f"  {time.monotonic() - started_s:6.1f} s  altogether", flush=True)


def everything_becomes_ready(deployment: Deployment) -> None:
    for component in ("redis", "learner", "reward", "rollout"):
        eventually(f"{component} is ready", lambda c=component: deployment.ready(c), 600)


def the_service_requires_a_token(deployment: Deployment) -> None:
    """Through the Service and cluster DNS, from another namespace."""

    def answered() -> bool:
        return deployment.ask("/v1/score", QUESTION)[0] == 401

    eventually("the reward Service answers a client's pod", answered, 120)
    assert deployment.ask("/v1/score", QUESTION, "wrong")[0] == 401
    for kind in ("token", "client-token"):
        status, answer = deployment.ask("/v1/score", QUESTION, deployment.tokens[kind])
        assert status == 200, answer
        (item,) = answer["items"]
        assert len(item["rewards"]) == 2
        assert sum(item["advantages"]) == pytest.approx(0.0, abs=1e-5)


def the_shipped_run_finishes(deployment: Deployment) -> None:
    """The shipped run learns: thoughts come to predict the answer."""
    summary = eventually("the shipped run has ended", deployment.summary, 1200)
    assert summary["steps"] == SHIPPED_STEPS
    assert_nothing_lost(deployment, SHIPPED_STEPS)
    gains = [row["information_gain"] for row in deployment.metrics()]
    print(f"            information gain {fmean(gains[:10]):.2f} -> {fmean(gains[-10:]):.2f} nats")
    assert fmean(gains[-10:]) > fmean(gains[:10]) + 0.4
    assert deployment.ready("learner") == ["learner-0"], "it is to stay"


def a_reward_pod_that_joins_later_gets_weights(deployment: Deployment) -> None:
    (old,) = deployment.ready("reward")
    deployment.delete(old)
    eventually("another reward pod has weights", lambda: deployment.ready("reward"), 300)
    assert deployment.ready("reward") != [old]
    status, answer = deployment.ask("/v1/score", QUESTION, deployment.tokens["token"])
    assert status == 200
    assert answer["items"][0]["policy_version"] == SHIPPED_STEPS


def a_token_is_added_without_a_restart(deployment: Deployment) -> None:
    pods, old, new = deployment.ready("reward"), deployment.tokens["client-token"], "c" * 32
    assert deployment.ask("/v1/score", QUESTION, new)[0] == 401
    deployment.add_client_token(new)

    def accepted() -> bool:
        return deployment.ask("/v1/score", QUESTION, new)[0] == 200

    eventually("a client's new token is accepted", accepted, 180)
    assert deployment.ask("/v1/score", QUESTION, old)[0] == 200
    assert deployment.ready("reward") == pods


def it_continues_with_more_steps(deployment: Deployment) -> None:
    deployment.set_steps(ENDLESS)
    more = SHIPPED_STEPS + 2
    eventually("the run continues", lambda: deployment.num_steps() >= more, 300)


def replicas_join_and_work(deployment: Deployment) -> None:
    deployment.scale(3)
    eventually(
        "three rollout replicas are ready", lambda: len(deployment.ready("rollout")) == 3, 600
    )
    pods = set(deployment.ready("rollout"))
    eventually("results of all three were trained on", lambda: pods <= deployment.workers(), 300)


def a_rollout_pod_is_replaced(deployment: Deployment) -> None:
    pods = deployment.ready("rollout")
    started_s = time.monotonic()
    deployment.delete(pods[0])
    print(f"  {time.monotonic() - started_s:6.1f} s  a rollout pod drained and went", flush=True)
    eventually(
        "another one is ready",
        lambda: len(now := set(deployment.ready("rollout"))) == 3 and pods[0] not in now,
        300,
    )
    (new,) = set(deployment.ready("rollout")) - set(pods)
    eventually("its results were trained on", lambda: new in deployment.workers(), 300)


def a_killed_learner_resumes(deployment: Deployment) -> None:
    """Killed at an arbitrary point; the newest checkpoint is some steps old."""
    epoch = max(deployment.journal()["epochs"])
    done = deployment.num_steps()
    deployment.delete("learner-0", "--grace-period=1")
    eventually("a learner resumed", lambda: max(deployment.journal()["epochs"]) > epoch, 300)
    eventually("and is past where it was", lambda: deployment.num_steps() > done, 300)


def redis_is_replaced(deployment: Deployment) -> None:
    deployment.delete("redis-0")
    eventually("another Redis is ready", lambda: deployment.ready("redis"), 120)
    done = deployment.num_steps()
    eventually("the run continues", lambda: deployment.num_steps() >= done + 3, 300)


def replicas_leave(deployment: Deployment) -> None:
    deployment.scale(1)
    eventually("one rollout replica is left", lambda: len(deployment.pods("rollout")) == 1, 120)
    done = deployment.num_steps()
    eventually("the run continues", lambda: deployment.num_steps() >= done + 3, 300)


def it_finishes_again(deployment: Deployment) -> None:
    end = deployment.num_steps() + 60  # it keeps working until its pod is replaced
    deployment.set_steps(end)
    eventually("the run has ended", lambda: deployment.summary()["steps"] == end, 600)
    assert_nothing_lost(deployment, end)


def assert_nothing_lost(deployment: Deployment, num_steps: int) -> None:
    """According to the summary and the journal: each task once in the surviving history."""
    summary = deployment.summary()
    assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, 0)
    assert summary["policy_version"] == num_steps
    assert deployment.journal()["ids"] == list(range(num_steps * BATCH_TASKS))
