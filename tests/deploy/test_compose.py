"""A whole run under docker compose with vLLM, with every disturbance of its containers.

`make e2e-compose` builds the images and runs it, on the Docker engine of DOCKER_HOST. It starts
a separate project that is removed with its volumes; the images stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import httpx2
import pytest

from forethought.run.directory import RunDirectory
from forethought.run.journal import read_journal
from tests.deploy.stack import Stack, build_images, eventually, has_engine, image_sizes

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        not os.environ.get("E2E_COMPOSE"), reason="only `make e2e-compose` uses a Docker engine"
    ),
]

BATCH_TASKS = 32
STEPS = int(os.environ.get("E2E_COMPOSE_STEPS", "300"))
REPLICA_TIMEOUT_S = 300.0
"""Enough for two vLLM engines to start at once on two busy cores."""
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


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """The compose file's whole system, built and removed at the end."""
    assert has_engine(), "no Docker engine with compose answers; start one, or set DOCKER_HOST"
    with Stack(tmp_path, {"FORETHOUGHT_LEARNER_STEPS": str(STEPS)}) as started:
        yield started
    assert not started.left_behind()
    print_table(started)


def test_a_run_under_disturbance(stack: Stack) -> None:
    with stack.timed("build, with whatever was cached"):
        build_images()
    with stack.timed("up, until everything is healthy"):
        stack.compose("up", "--detach", "--wait")
    the_service_requires_a_token(stack)
    rollouts = {*stack.running("rollout"), *replicas_join_and_work(stack)}
    survives(stack, "redis")
    survives(stack, "reward")
    replicas_leave(stack)
    with stack.timed("the rest of the run"):
        ended = eventually(
            "the end of the run",
            lambda: [s] if (s := stack.exit_status("trainer")) is not None else [],
            1500.0,
        )
    assert ended == [0]
    nothing_was_lost(RunDirectory(stack.copy_run()), rollouts)
    the_finished_run_stays_finished(stack)


def the_service_requires_a_token(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.port}/v1/score"
    with httpx2.Client(timeout=60.0, trust_env=False) as client:
        assert client.post(url, json=QUESTION).status_code == 401
        wrong = {"authorization": "Bearer wrong"}
        assert client.post(url, json=QUESTION, headers=wrong).status_code == 401
        for name in ("token", "client-token"):
            bearer = {"authorization": f"Bearer {stack.token(name)}"}
            reply = client.post(url, json=QUESTION, headers=bearer)
            assert reply.status_code == 200, reply.text
            assert len(reply.json()["items"][0]["rewards"]) == 2


def replicas_join_and_work(stack: Stack) -> set[str]:
    """Scale from 1 to 3, until both new replicas have finished tasks; returns their host names."""
    old = stack.running("rollout")
    with stack.timed("rollout 1 to 3, until both newcomers have contributed"):
        stack.scale("rollout", 3)
        new = stack.running("rollout") - old
        assert len(new) == 2
        eventually("newcomers' results", lambda: new <= workers(stack), REPLICA_TIMEOUT_S)
    return new


def workers(stack: Stack) -> set[str]:
    """Host names of the rollout replicas that have finished tasks."""
    replicas = stack.status().get("replicas", [])
    return {host_of(r["id"]) for r in replicas if r["kind"] == "rollout" and r["tasks_done"]}


def host_of(replica_id: str) -> str:
    return replica_id.split("-")[1]


def survives(stack: Stack, service: str) -> None:
    """The run continues after a restart of ``service``."""
    with stack.timed(f"restart of {service}, until five more steps are done"):
        before = stack.step()
        assert before < STEPS - 20, "the run was nearly over before it could be disturbed"
        stack.compose("restart", service)
        eventually(f"steps after {service}", lambda: stack.step() >= before + 5, REPLICA_TIMEOUT_S)


def replicas_leave(stack: Stack) -> None:
    with stack.timed("rollout 3 to 1, until the registry has forgotten two"):
        stack.scale("rollout", 1)
        left = stack.running("rollout")
        assert len(left) == 1
        eventually("two to be forgotten", lambda: registered(stack) == left, 60.0)


def registered(stack: Stack) -> set[str]:
    replicas = stack.status().get("replicas", [])
    return {host_of(r["id"]) for r in replicas if r["kind"] == "rollout"}


def nothing_was_lost(run: RunDirectory, rollouts: set[str]) -> None:
    """From the run directory: every task once, by all three replicas, and the model improved."""
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    assert summary["steps"] == STEPS
    assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, 0)
    results = [result for record in read_journal(run.journal) for result in record.results]
    assert [r.rollout.task.task_id for r in results] == list(range(STEPS * BATCH_TASKS))
    by_host = dict.fromkeys(rollouts, 0)
    for result in results:
        by_host[host_of(result.rollout.replica)] += 1
    assert len(by_host) == 3
    assert min(by_host.values()) > 0
    gains = [row["information_gain"] for row in run.read_metrics()]
    first, last = fmean(gains[:10]), fmean(gains[-10:])
    assert last > first + 0.2
    print(f"  tasks by replica {sorted(by_host.values())}, gain {first:.2f} -> {last:.2f} nats")
    print(f"  lost {summary['lost']}, duplicated {summary['duplicated']}, epoch {summary['epoch']}")


def the_finished_run_stays_finished(stack: Stack) -> None:
    """The learner is not restarted by its restart policy, and replicas keep serving."""
    assert stack.exit_status("trainer") == 0
    state = stack.compose("ps", "--all", "--format", "{{.Service}} {{.Health}}")
    assert "reward healthy" in state
    assert "rollout healthy" in state


def print_table(stack: Stack) -> None:
    print("\n  | image | MB, base included |\n  |---|---|")
    for image, size in image_sizes().items():
        print(f"  | {image}:cpu | {size / 1e6:,.0f} |")
    print("\n  | | seconds |\n  |---|---|")
    for what, seconds in stack.times:
        print(f"  | {what} | {seconds:.1f} |")
