"""The plain numbers behind the metrics."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest
from prometheus_client import CollectorRegistry, Histogram, Metric

from forethought.errors import Unreachable
from forethought.queue.interface import Message, Stage, StageDepth
from forethought.queue.memory_broker import MemoryBroker
from forethought.telemetry.distribution import REQUEST_BOUNDS_S, TOKEN_BOUNDS, Distribution
from forethought.telemetry.metrics import counter, gauge, histogram, process_registry
from forethought.types import Document, Prompting, Rollout, Sampling, ScoredRollout, Task
from services.reward.metrics import HttpSeconds
from trainer.metrics.depth_watch import DepthWatch
from trainer.metrics.step_counts import StepCounts, TaskCounts


def samples(family: Metric) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
    return {(s.name, tuple(sorted(s.labels.items())), s.value) for s in family.samples}


@pytest.mark.parametrize("bounds", [REQUEST_BOUNDS_S, TOKEN_BOUNDS])
def test_a_distribution_equals_prometheus_histogram(bounds: tuple[float, ...]) -> None:
    """Compared with prometheus-client's, on random values and on the bounds themselves."""
    registry, rng, ours = CollectorRegistry(), Random(1), Distribution(bounds)
    theirs = Histogram("x", "text", buckets=bounds, registry=registry)
    for value in (*bounds, 0.0, 2 * bounds[-1], *(rng.expovariate(1 / 8) for _ in range(500))):
        ours.add(value)
        theirs.observe(value)
    (reference,) = registry.collect()
    expected = {s for s in samples(reference) if s[0] != "x_created"}
    assert samples(histogram("x", "text", ours)) == expected
    assert ours.num_values == len(bounds) + 502


def test_values_by_one_label_by_several_and_none() -> None:
    assert samples(gauge("x", "text", 2.5)) == {("x", (), 2.5)}
    assert samples(gauge("x", "text", None)) == set()
    assert samples(counter("x_total", "text", {"a": 1, "b": 2}, ("l",))) == {
        ("x_total", (("l", "a"),), 1),
        ("x_total", (("l", "b"),), 2),
    }
    assert samples(gauge("x", "text", {("a", "b"): 3}, ("k", "l"))) == {
        ("x", (("k", "a"), ("l", "b")), 3)
    }


def test_registries_share_nothing() -> None:
    one, other = process_registry("rollout"), process_registry("learner")
    assert one.get_sample_value("process_open_fds") is not None
    for registry, process in ((one, "rollout"), (other, "learner")):
        (build,) = (f for f in registry.collect() if f.name == "forethought_build_info")
        assert [s.labels["process"] for s in build.samples] == [process]


def scored(task_id: int, error: str | None = None) -> ScoredRollout:
    task = Task(
        task_id, 1, 0, 0, "rlp", "{}", Document("d", "s", (1,)), (), Prompting(), Sampling(2, 5), 0
    )
    return ScoredRollout(Rollout(task), error=error)


def test_batches_are_compared_with_the_ids_that_must_be_in_them() -> None:
    counts = TaskCounts(batch_tasks=3)
    counts.close(0, [scored(0), scored(1, "no"), scored(2)])
    assert (counts.num_trained, counts.num_failed) == (2, 1)
    assert (counts.num_lost, counts.num_duplicated) == (0, 0)
    counts.close(1, [scored(3), scored(5), scored(5)])
    assert (counts.num_lost, counts.num_duplicated) == (1, 1)
    counts.close(2, [])
    assert (counts.num_lost, counts.num_duplicated) == (4, 1)


def test_a_phase_that_raises_has_no_duration() -> None:
    counts = StepCounts()
    with pytest.raises(ZeroDivisionError), counts.phase("learn"):
        raise ZeroDivisionError
    with counts.phase("learn"):
        pass
    assert counts.phase_seconds["learn"].num_values == 1
    counts.close({"skipped": True, "loss": math.nan}, num_tokens=70)
    assert (counts.num_skipped, counts.num_tokens, counts.step_seconds.num_values) == (1, 70, 1)


async def test_depths_go_stale_while_the_broker_is_away() -> None:
    class Away(MemoryBroker):
        is_away = False

        async def depths(self) -> dict[Stage, StageDepth]:
            if self.is_away:
                raise Unreachable("no Redis")
            return await super().depths()

    broker = Away()
    await broker.put(Stage.TASKS, [Message(0, 1, b"task")])
    watch = DepthWatch(broker, every_s=0.001)
    assert (watch.depths, watch.seen_unix_s) == ({}, None)
    watching = asyncio.create_task(watch.run())
    while not watch.depths:
        await asyncio.sleep(0.001)
    broker.is_away = True
    await asyncio.sleep(0.01)
    seen_unix_s = watch.seen_unix_s
    await asyncio.sleep(0.02)
    assert watch.depths[Stage.TASKS] == StageDepth(1, 0)
    assert watch.seen_unix_s == seen_unix_s
    broker.is_away = False
    while watch.seen_unix_s == seen_unix_s:
        await asyncio.sleep(0.001)
    watching.cancel()


def test_http_requests_are_counted_by_endpoint_and_status() -> None:
    """Unknown paths create no series."""
    http = HttpSeconds()
    for path, status in (("/v1/score", 200), ("/v1/score", 200), ("/odd", 404), ("/left", 404)):
        http.observe(path, status, 0.1)
    found = {key: distribution.num_values for key, distribution in http.seconds.items()}
    assert found == {("/v1/score", 200): 2, ("other", 404): 2}
