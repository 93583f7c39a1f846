"""The publisher with real replicas on loopback: joining, lagging, hanging, restarting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from forethought.config.sections import PublishSection
from forethought.errors import InvalidInput, Stale
from forethought.types import Replica, WeightManifest
from forethought.weights.snapshot import Snapshot
from tests.fake_replica import CHUNK_BYTES, MODEL_FILES, FakeReplica, serving, snapshot_of, until
from trainer.publisher import Publisher, ReplicaPush

SETTINGS = PublishSection(
    connect_timeout_s=0.5, push_timeout_s=5, retry_s=0.05, chunk_bytes=CHUNK_BYTES
)


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[FakeReplica]:
    async with serving(FakeReplica("rollout-a1", tmp_path)) as replica:
        yield replica


class Registry:
    """The broker's list of replicas, by hand."""

    def __init__(self, *replicas: FakeReplica) -> None:
        self.replicas = list(replicas)
        self.error: Exception | None = None
        self.others: list[Replica] = []

    async def __call__(self) -> list[Replica]:
        if self.error is not None:
            raise self.error
        return [replica.entry for replica in self.replicas] + self.others


@asynccontextmanager
async def publishing(
    registry: Registry, discover_s: float = 0.05, settings: PublishSection = SETTINGS
) -> AsyncIterator[Publisher]:
    publisher = Publisher(registry, settings, discover_s)
    run = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        run.cancel()
        await asyncio.wait({run})
        assert run.cancelled(), "run() must end by cancellation alone"
        left = [task for task in asyncio.all_tasks() if task.get_name().startswith("sender:")]
        assert left == [], "a sender outlived its publisher"


async def test_a_publish_reaches_every_replica_and_model(tmp_path: Path):
    rollout = FakeReplica("rollout-a1", tmp_path)
    reward = FakeReplica("reward-b2", tmp_path, frozenset({"policy", "baseline"}))
    async with (
        serving(rollout),
        serving(reward),
        publishing(Registry(rollout, reward)) as publisher,
    ):
        policy, baseline = snapshot_of(1), snapshot_of(1, model="baseline")
        publisher.publish(policy)
        publisher.publish(baseline)
        assert await publisher.wait_until_current(5) == []
        assert rollout.receiver.holding == {"policy": policy.manifest}
        assert reward.receiver.holding == {
            "policy": policy.manifest,
            "baseline": baseline.manifest,
        }


async def test_model_files_are_sent_once(replica: FakeReplica):
    async with publishing(Registry(replica)) as publisher:
        sent_bytes = []
        for version in (1, 2):
            publisher.publish(snapshot_of(version))
            assert await publisher.wait_until_current(5) == []
            state = publisher.state()["rollout-a1"]
            sent_bytes.append(state.last_push_bytes)
            assert state.holding == {"policy": (1, version)}
            assert state.last_push_s > 0
            assert state.last_error is None
        counts = publisher.pushes()["rollout-a1", "policy"]
        assert (counts.seconds.num_values, counts.num_bytes) == (2, sum(sent_bytes))
    weights_bytes = len(snapshot_of(1).weights)
    model_bytes = sum(map(len, MODEL_FILES.values()))
    assert sent_bytes == [weights_bytes + model_bytes, weights_bytes]
    assert replica.applied[1][1] == snapshot_of(2).files


async def test_a_joiner_receives_the_newest_only(tmp_path: Path, replica: FakeReplica):
    registry = Registry(replica)
    async with publishing(registry) as publisher:
        for version in (1, 2):
            publisher.publish(snapshot_of(version))
            assert await publisher.wait_until_current(5) == []
        async with serving(FakeReplica("rollout-c3", tmp_path)) as joiner:
            registry.replicas.append(joiner)
            assert await publisher.wait_until_current(5) == []
            assert joiner.orders == [(1, 2)]
            registry.replicas.remove(joiner)


async def test_versions_missed_are_skipped(replica: FakeReplica):
    flipping, go_on = asyncio.Event(), asyncio.Event()
    record = replica.apply

    async def held_apply(manifest: WeightManifest, directory: Path) -> None:
        flipping.set()
        await go_on.wait()
        await record(manifest, directory)

    replica.receiver._apply = held_apply
    async with publishing(Registry(replica)) as publisher:
        publisher.publish(snapshot_of(1))
        await asyncio.wait_for(flipping.wait(), 5)
        for version in (2, 3, 4):
            publisher.publish(snapshot_of(version))
        assert publisher.num_replicas() == {("rollout", "behind"): 1}
        go_on.set()
        assert await publisher.wait_until_current(5) == []
    assert replica.orders == [(1, 1), (1, 4)]


async def test_a_version_is_on_its_way_until_a_replica_of_each_kind_serves_it(tmp_path: Path):
    go_on = asyncio.Event()

    async def held_apply(manifest: WeightManifest, directory: Path) -> None:
        await go_on.wait()

    quick, slow = FakeReplica("rollout-a1", tmp_path), FakeReplica("reward-b2", tmp_path)
    async with serving(quick), serving(slow):
        slow.receiver._apply = held_apply
        registry = Registry(quick)
        async with publishing(registry) as publisher:
            assert not publisher.is_on_its_way(1), "there is no replica"
            publisher.publish(snapshot_of(1))
            assert await publisher.wait_until_current(5) == []
            assert not publisher.is_on_its_way(1)
            registry.others = [Replica("reward-b2", "reward", slow.address, ("policy",))]
            await until(lambda: publisher.is_on_its_way(1))
            go_on.set()
            await until(lambda: not publisher.is_on_its_way(1))
            await slow.grpc_server.stop()
            publisher.publish(snapshot_of(2))
            await until(lambda: publisher.state()["rollout-a1"].holding == {"policy": (1, 2)})
            await until(
                lambda: not publisher.is_on_its_way(2)
            )  # a push that fails is not waited for


@asynccontextmanager
async def hung_replica() -> AsyncIterator[Replica]:
    """Accepts connections and never answers."""
    hold = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield Replica("hung", "rollout", f"127.0.0.1:{port}", ("policy",))
        hold.set()


async def test_a_hung_replica_delays_neither_another_nor_publish(replica: FakeReplica):
    registry = Registry(replica)
    async with hung_replica() as hung:
        registry.others.append(hung)
        async with publishing(registry) as publisher:
            for version in range(1, 4):
                publisher.publish(snapshot_of(version))
                changed = asyncio.create_task(replica.receiver.wait_for_change())
                await asyncio.wait_for(changed, SETTINGS.connect_timeout_s / 2)
            assert replica.receiver.holding["policy"].version == 3
            assert await publisher.wait_until_current(SETTINGS.connect_timeout_s * 2) == ["hung"]
            state = publisher.state()
            assert state["hung"].holding == {}
            assert "DEADLINE_EXCEEDED" in (state["hung"].last_error or "")
            assert state["rollout-a1"].last_error is None
            assert publisher.num_replicas() == {
                ("rollout", "failing"): 1,
                ("rollout", "current"): 1,
            }
            assert publisher.pushes()["hung", "policy"].num_failures >= 1
            assert publisher.pushes()["rollout-a1", "policy"].num_failures == 0
            assert publisher.lags() == {("rollout-a1", "policy"): 0}


async def test_a_push_that_hangs_ends_at_its_deadline_and_is_found_done_later(
    replica: FakeReplica,
):
    go_on = asyncio.Event()
    record = replica.apply

    async def held_apply(manifest: WeightManifest, directory: Path) -> None:
        await go_on.wait()
        await record(manifest, directory)

    replica.receiver._apply = held_apply
    hasty = SETTINGS.model_copy(update={"push_timeout_s": 0.3})
    async with publishing(Registry(replica), settings=hasty) as publisher:
        publisher.publish(snapshot_of(1))
        await until(lambda: bool(publisher.state().get("rollout-a1", ReplicaPush()).last_error))
        assert "DEADLINE_EXCEEDED" in (publisher.state()["rollout-a1"].last_error or "")
        go_on.set()
        assert await publisher.wait_until_current(5) == []
    assert replica.orders == [(1, 1)]


async def test_a_replica_that_restarts_empty_is_pushed_to_again(replica: FakeReplica):
    registry = Registry(replica)
    async with publishing(registry) as publisher:
        for version in (1, 2):
            publisher.publish(snapshot_of(version))
            assert await publisher.wait_until_current(5) == []
        port = replica.grpc_server.port
        await replica.grpc_server.stop()
        replica.applied.clear()
        await replica.start(port)  # same id, same address, nothing held; nothing new is published
        await asyncio.wait_for(replica.receiver.wait_for_change(), 5)
        assert replica.applied == [(snapshot_of(2).manifest, snapshot_of(2).files)]
        publisher.publish(snapshot_of(3))
        assert await publisher.wait_until_current(5) == []


async def test_an_unreachable_replica_counts_as_behind(replica: FakeReplica):
    registry = Registry(replica)
    async with publishing(registry) as publisher:
        publisher.publish(snapshot_of(1))
        assert await publisher.wait_until_current(5) == []
        await replica.grpc_server.stop()
        replica.receiver.holding.clear()
        await until(lambda: publisher.state()["rollout-a1"].holding == {})
        publisher.publish(snapshot_of(2))
        assert await publisher.wait_until_current(0.3) == ["rollout-a1"]
        registry.replicas.clear()  # its lease expired: it is no longer waited for
        assert await publisher.wait_until_current(5) == []
        assert publisher.state() == {}
        assert publisher.pushes() == publisher.lags() == publisher.num_replicas() == {}


async def test_a_draining_replica_is_skipped(replica: FakeReplica):
    registry = Registry()
    registry.others = [Replica("old", "rollout", replica.address, ("policy",), draining=True)]
    async with publishing(registry) as publisher:
        publisher.publish(snapshot_of(1))
        assert await publisher.wait_until_current(5) == []
        assert publisher.num_replicas() == {("rollout", "draining"): 1}
    assert replica.applied == []


async def test_a_refusing_replica_is_logged_once_and_recovers(replica: FakeReplica, caplog):
    caplog.set_level(logging.WARNING, "trainer.publisher")
    replica.refuse = InvalidInput("no such layer")
    async with publishing(Registry(replica)) as publisher:
        publisher.publish(snapshot_of(1))
        assert await publisher.wait_until_current(0.4) == ["rollout-a1"]
        assert publisher.pushes()["rollout-a1", "policy"].num_failures > 1
        assert "no such layer" in (publisher.state()["rollout-a1"].last_error or "")
        assert len(caplog.records) == 1, "several retries with one error are one line"
        replica.refuse = None
        assert await publisher.wait_until_current(5) == []
        assert publisher.state()["rollout-a1"].last_error is None


async def test_a_lost_registry_keeps_the_replicas_known(replica: FakeReplica, caplog):
    registry = Registry(replica)
    async with publishing(registry) as publisher:
        publisher.publish(snapshot_of(1))
        assert await publisher.wait_until_current(5) == []
        registry.error = ConnectionError("Redis is away")
        publisher.publish(snapshot_of(2))
        assert await publisher.wait_until_current(5) == []
    assert replica.orders == [(1, 1), (1, 2)]
    assert [r.message for r in caplog.records if "Redis is away" in r.message] != []


FOREIGN = [
    pytest.param(snapshot_of(0, epoch=2), id="later-epoch"),
    pytest.param(snapshot_of(0, epoch=1, run_id="b" * 16), id="other-run-same-epoch"),
    pytest.param(snapshot_of(9, epoch=7, run_id="b" * 16), id="other-run-later-epoch"),
]


@pytest.mark.parametrize("held", FOREIGN)
async def test_a_replica_with_foreign_weights_is_quarantined_with_an_alarm(
    replica: FakeReplica, held: Snapshot, caplog: pytest.LogCaptureFixture
):
    await replica.push(held)
    async with publishing(Registry(replica)) as publisher:
        publisher.publish(snapshot_of(50, epoch=1))
        await until(lambda: publisher.num_replicas() == {("rollout", "quarantined"): 1})
        async with asyncio.timeout(5):
            assert await publisher.wait_until_current(60) == ["rollout-a1"], "not waited for"
        state = publisher.state()["rollout-a1"]
        assert (state.holding, state.is_quarantined) == ({"policy": held.manifest.order}, True)
        assert publisher.lags() == {}
    assert replica.orders == [held.manifest.order]
    (alarm,) = {record.getMessage() for record in caplog.records}
    assert "policy of rollout-a1 is quarantined" in alarm
    assert f"holds run {held.manifest.run_id}, epoch {held.manifest.epoch}" in alarm
    assert "restart this replica" in alarm


@pytest.mark.parametrize("held", FOREIGN)
async def test_a_quarantined_replica_returns_when_its_redis_names_this_learner(
    replica: FakeReplica, held: Snapshot
):
    await replica.push(held)
    async with publishing(Registry(replica)) as publisher:
        mine = snapshot_of(3, epoch=1)
        publisher.publish(mine)
        await until(lambda: publisher.num_replicas() == {("rollout", "quarantined"): 1})
        replica.owner = held.manifest.origin
        assert await publisher.wait_until_current(0.3) == ["rollout-a1"]
        replica.owner = mine.manifest.origin
        await until(lambda: publisher.num_replicas() == {("rollout", "current"): 1})
        assert await publisher.wait_until_current(5) == []
    assert replica.orders == [held.manifest.order, (1, 3)]
    assert replica.receiver.holding == {"policy": mine.manifest}


async def test_nothing_is_pushed_to_a_replica_that_is_not_sound(
    tmp_path: Path, replica: FakeReplica
):
    async with serving(FakeReplica("rollout-b2", tmp_path)) as unsound:
        async with publishing(Registry(replica, unsound)) as publisher:
            publisher.publish(snapshot_of(1))
            assert await publisher.wait_until_current(5) == []
            publisher.quarantine("rollout-b2", "its numbers differ")
            publisher.publish(snapshot_of(2))
            assert await publisher.wait_until_current(5) == []
            assert publisher.num_replicas() == {
                ("rollout", "current"): 1,
                ("rollout", "quarantined"): 1,
            }
            assert publisher.state().keys() == {"rollout-a1"}
            assert not publisher.is_on_its_way(2)
        assert (replica.orders, unsound.orders) == ([(1, 1), (1, 2)], [(1, 1)])


async def test_publish_is_woken_without_waiting_for_the_next_discovery(replica: FakeReplica):
    async with publishing(Registry(replica), discover_s=60) as publisher:
        publisher.publish(snapshot_of(1))
        assert await publisher.wait_until_current(5) == []
        publisher.publish(snapshot_of(2))
        await asyncio.wait_for(replica.receiver.wait_for_change(), 5)


async def test_publishing_backwards_is_refused():
    publisher = Publisher(Registry(), SETTINGS, 1)
    publisher.publish(snapshot_of(1, epoch=2))
    with pytest.raises(Stale, match="publish each version once"):
        publisher.publish(snapshot_of(900, epoch=1))
