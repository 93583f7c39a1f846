"""What every process exports, scraped over HTTP around a small run, against docs/metrics.md.

Rollout, reward and learner run in this one process, on a real Redis, over real gRPC and HTTP: their
registries share nothing.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

import services.reward.__main__ as reward
import services.rollout.__main__ as rollout
import trainer.__main__ as learner
from forethought.clients import AsyncRolloutClient
from forethought.config import load_settings
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import PLAIN, write_corpus
from forethought.preflight import check_run
from forethought.types import Sampling
from tests.repository import ROOT
from trainer.assembly import assemble

pytestmark = pytest.mark.timeout(180)

DOCUMENT = ROOT / "docs" / "metrics.md"
NUM_STEPS, BATCH_TASKS, GROUP_SIZE = 3, 2, 4
NUM_TASKS = NUM_STEPS * BATCH_TASKS
ITEM = {"context": "3+4=", "target": "7", "thoughts": ["a", "b"]}

Families = dict[str, Metric]


@dataclass(frozen=True)
class Scrapes:
    """The metric families of every process before and after the run."""

    before: dict[str, Families]
    after: dict[str, Families]

    def value(self, process: str, sample: str, **labels: str) -> float:
        return sum(
            s.value
            for family in self.after[process].values()
            for s in family.samples
            if s.name == sample and labels.items() <= s.labels.items()
        )


@pytest.fixture(scope="module")
def scrapes(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Scrapes:
    directory = tmp_path_factory.mktemp("metrics")
    corpus = write_corpus(
        directory / "corpus", num_documents=200, seed=0, mixture=PLAIN, num_heldout=1
    ).train
    ports = dict(zip(("rollout", "reward", "learner", "http", "grpc"), free_ports(), strict=False))
    settings = load_settings(
        None,
        [
            f"redis.url={redis_url}", "run.name=metrics", f"run.directory={directory / 'run'}",
            "auth.open=true", f"model.path={base_model()}", f"corpus.path={corpus}",
            "corpus.window_tokens=32", f"sampling.group_size={GROUP_SIZE}",
            "sampling.max_thought_tokens=9", f"learner.steps={NUM_STEPS}", "learner.stay=true",
            f"learner.batch_tasks={BATCH_TASKS}", f"checkpoint.every_steps={NUM_STEPS}",
            *(f"{process}.num_threads=0" for process in ("rollout", "reward", "learner")),
            *(f"{process}.ops_port={ports[process]}" for process in ("rollout", "reward", "learner")),
            f"reward.http_port={ports['http']}", f"rollout.grpc_port={ports['grpc']}",
        ],
    )  # fmt: skip
    return asyncio.run(scrape_around(settings, ports))


def free_ports() -> Iterator[int]:
    """Free ports; all are held until the last one is known, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return iter(ports)


async def scrape_around(settings: Any, ports: dict[str, int]) -> Scrapes:
    stop, replicas = asyncio.Event(), ("rollout", "reward")
    tasks = [asyncio.create_task(module.serve(settings, stop)) for module in (rollout, reward)]
    try:
        before = {name: await scraped(ports[name], tasks) for name in replicas}
        tasks.append(
            asyncio.create_task(learner.run_thinking(assemble(settings, check_run(settings)), stop))
        )
        while not (families := await scraped(ports["learner"], tasks)) or not is_done(families):
            await asyncio.sleep(0.05)
        await ask(ports)
        await asyncio.sleep(1.2)  # depths are sampled once a second
        after = {name: await scraped(ports[name], tasks) for name in (*replicas, "learner")}
    finally:
        stop.set()
        results = await asyncio.gather(*tasks)
    assert results[:2] == [0, 0]
    return Scrapes(before, after)


async def scraped(port: int, tasks: list[asyncio.Task[Any]]) -> Families:
    """The families of a process, as soon as it responds."""
    async with httpx2.AsyncClient() as client:
        while True:
            assert not any(task.done() for task in tasks), [
                t.exception() for t in tasks if t.done()
            ]
            try:
                reply = await client.get(f"http://127.0.0.1:{port}/metrics")
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
                continue
            assert reply.status_code == 200
            return {name_of(f): f for f in text_string_to_metric_families(reply.text)}


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def is_done(families: Families) -> bool:
    """Whether all steps are closed and every replica has the last version."""
    lags = families["forethought_replica_lag_versions"].samples
    (step,) = families["forethought_learner_step"].samples
    return step.value == NUM_STEPS and len(lags) == 3 and not any(lag.value for lag in lags)


async def ask(ports: dict[str, int]) -> None:
    """One valid and two invalid HTTP requests, a page, and one Generate call."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ports['http']}") as client:
        await client.post("/v1/score", json={"objective": "rlp", "items": [ITEM]})
        await client.post("/v1/score", content=b"{")
        await client.get("/nowhere")
        await client.get("/v1/models")
    async with AsyncRolloutClient(f"grpc://127.0.0.1:{ports['grpc']}") as rollouts:
        await rollouts.generate(Sampling(2, 5), prefix_ids=(5, 6))


def documented() -> dict[str, tuple[str, frozenset[str], frozenset[str]]]:
    """Type, labels and processes of every name in a table of the page."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| [^|]+ \| ([^|]*) \| [^|]+ \|$",
        DOCUMENT.read_text(encoding="utf-8"),
        re.M,
    )
    assert len({row[0] for row in rows}) == len(rows), "a metric stands in two rows"
    return {name: (kind, words(labels), words(processes)) for name, kind, labels, processes in rows}


def words(cell: str) -> frozenset[str]:
    return frozenset(cell.split(", ")) - {"-"}


def test_what_is_documented_is_exported_and_the_reverse(scrapes: Scrapes) -> None:
    exported: dict[str, set[str]] = {}
    for process, families in scrapes.after.items():
        for name in families:
            exported.setdefault(name, set()).add(process)
    assert exported == {name: set(row[2]) for name, row in documented().items()}


def test_types_and_labels_match_the_documentation(scrapes: Scrapes) -> None:
    for families in scrapes.after.values():
        for name, family in families.items():
            kind, labels, _ = documented()[name]
            assert family.type == kind, name
            assert family.documentation, name
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == labels, name


def test_every_family_is_there_from_the_start(scrapes: Scrapes) -> None:
    for process, families in scrapes.before.items():
        assert families.keys() == scrapes.after[process].keys()


def test_names_and_units_are_conventional() -> None:
    for name, (kind, _, _) in documented().items():
        assert re.fullmatch(r"(forethought|process|python)(_[a-z]+)+", name), name
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_tokens")), name


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("step", NUM_STEPS),
        ("policy_version", NUM_STEPS),
        ("policy_lag_steps", 0.0),
        ("step_seconds_count", NUM_STEPS),
        ("tasks_outstanding", 0),
        ("tasks_admitted_total", NUM_TASKS),
        ("tasks_trained_total", NUM_TASKS),
        ("tasks_failed_total", 0),
        ("tasks_lost_total", 0),
        ("tasks_duplicated_total", 0),
    ],
)
def test_the_learner_counts_its_run(scrapes: Scrapes, sample: str, expected: float) -> None:
    assert scrapes.value("learner", f"forethought_learner_{sample}") == expected


def test_the_learner_exports_its_training_metrics(scrapes: Scrapes) -> None:
    def value(name: str, **labels: str) -> float:
        return scrapes.value("learner", f"forethought_learner_{name}", **labels)

    assert all(math.isfinite(value(name)) for name in ("loss", "reward_mean", "gradient_norm"))
    assert value("information_gain_nats") == pytest.approx(value("reward_mean"))
    assert 1 <= value("thought_tokens_mean") <= 9
    assert 0 <= value("truncated_ratio") <= 1
    assert value("tokens_total") > NUM_TASKS * GROUP_SIZE
    for phase in ("learn", "publish", "admit", "journal"):
        assert value("phase_seconds_count", phase=phase) == NUM_STEPS
        assert value("phase_seconds_sum", phase=phase) > 0
    assert value("phase_seconds_count", phase="checkpoint") == 1


def test_streams_and_replicas_are_seen(scrapes: Scrapes) -> None:
    lag = scrapes.after["learner"]["forethought_stream_lag_tasks"].samples
    assert {s.labels["stage"]: s.value for s in lag} == {"tasks": 0, "rollouts": 0, "scored": 0}
    states = scrapes.after["learner"]["forethought_replicas"].samples
    assert {(s.labels["kind"], s.labels["state"], s.value) for s in states} == {
        ("rollout", "current", 1),
        ("reward", "current", 1),
    }


@pytest.mark.parametrize("process", ["rollout", "reward"])
def test_both_ends_of_a_push_agree(scrapes: Scrapes, process: str) -> None:
    families = scrapes.after["learner"]["forethought_push_seconds"].samples
    (replica,) = {s.labels["replica"] for s in families if s.labels["replica"].startswith(process)}
    to_it = {"replica": replica, "model": "policy"}
    num_pushes = scrapes.value("learner", "forethought_push_seconds_count", **to_it)
    assert 1 <= num_pushes <= NUM_STEPS + 1
    applied = "forethought_weights_apply_seconds_count"
    assert scrapes.value(process, applied, model="policy") == num_pushes
    applied_bytes = scrapes.value(
        process, "forethought_weights_applied_bytes_total", model="policy"
    )
    sent_bytes = scrapes.value("learner", "forethought_push_bytes_total", **to_it)
    assert 0 < applied_bytes < sent_bytes  # the first push carries the model files too
    assert scrapes.value(process, "forethought_served_version", model="policy") == NUM_STEPS
    assert scrapes.value(process, "forethought_ready") == 1


@pytest.mark.parametrize("process", ["rollout", "reward"])
def test_workers_count_their_tasks(scrapes: Scrapes, process: str) -> None:
    def value(name: str, **labels: str) -> float:
        return scrapes.value(process, f"forethought_worker_{name}", **labels)

    assert value("tasks_total", outcome="done") == NUM_TASKS
    assert value("deliveries_total") == NUM_TASKS + value("tasks_total", outcome="released")
    assert value("tasks_total", outcome="failed") == value("dead_letters_total") == 0
    assert value("held_tasks") == 0
    assert value("batch_limit_tasks") == {"rollout": 8, "reward": 16}[process]  # the defaults
    assert 1 <= value("batch_seconds_count") <= NUM_TASKS
    assert value("seconds_total", activity="working") >= value("batch_seconds_sum") * 0.99
    assert value("seconds_total", activity="receiving") > 0


def test_thoughts_of_both_transports_are_counted(scrapes: Scrapes) -> None:
    num_thoughts = scrapes.value("rollout", "forethought_rollout_thoughts_total")
    num_tokens = scrapes.value("rollout", "forethought_rollout_thought_tokens_total")
    assert num_thoughts == NUM_TASKS * GROUP_SIZE + 2
    assert num_thoughts <= num_tokens <= num_thoughts * 9
    assert scrapes.value("rollout", "forethought_rollout_running_thoughts") == 0
    count = "forethought_grpc_request_seconds_count"
    assert scrapes.value("rollout", count, method="Generate", code="OK") == 1
    assert scrapes.value("rollout", count, method="Push", code="OK") >= 1


def test_requests_of_the_reward_service_are_counted(scrapes: Scrapes) -> None:
    count = "forethought_reward_http_request_seconds_count"
    seen = {
        (s.labels["endpoint"], s.labels["status"]): s.value
        for s in scrapes.after["reward"]["forethought_reward_http_request_seconds"].samples
        if s.name == count
    }
    assert seen == {
        ("/v1/score", "200"): 1,
        ("/v1/score", "400"): 1,
        ("/v1/models", "200"): 1,
        ("other", "404"): 1,
    }
    assert scrapes.value("reward", "forethought_reward_batch_seconds_count") == 1
    assert scrapes.value("reward", "forethought_reward_batch_tokens_sum") > 4
    assert scrapes.value("reward", "forethought_reward_waiting_tokens") == 0
