"""Weight pushes to a replica over real gRPC on loopback, and its state after each rejected push."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forethought.errors import InvalidInput, Stale, Unreachable
from forethought.rpc.server import start_grpc_server
from forethought.types import WeightManifest
from forethought.weights.grpc_weights import WeightsClient
from forethought.weights.snapshot import (
    WEIGHTS_FILE,
    Snapshot,
    header_of,
    make_snapshot,
)
from forethought.wire.codec import WIRE_VERSION, manifest_to_proto
from forethought.wire.v1 import weights_pb2, weights_pb2_grpc
from tests.fake_replica import CHUNK_BYTES, MODEL_FILES, FakeReplica, serving, snapshot_of, until


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[FakeReplica]:
    async with serving(FakeReplica("rollout-a1", tmp_path)) as replica:
        yield replica


# --- hand-written pushes -------------------------------------------------------------------------


def messages_of(snapshot: Snapshot, *, weights_only: bool = False) -> list[weights_pb2.PushMessage]:
    """The messages of a push, built independently of the client."""
    promised = header_of(snapshot, weights_only=weights_only)
    header = weights_pb2.PushHeader(
        wire_version=WIRE_VERSION,
        manifest=manifest_to_proto(snapshot.manifest),
        codec="safetensors",
        files=[
            weights_pb2.PushedFile(name=f.name, num_bytes=f.num_bytes, sha256=f.sha256)
            for f in promised.files
        ],
    )
    data = b"".join(snapshot.files[f.name] for f in promised.files)
    chunks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
    return [
        weights_pb2.PushMessage(header=header),
        *(weights_pb2.PushMessage(chunk=chunk) for chunk in chunks),
    ]


async def push_by_hand(
    replica: FakeReplica, messages: Sequence[weights_pb2.PushMessage]
) -> tuple[str, str]:
    """Send messages as the protocol requires; returns (status code, details)."""
    async with grpc.aio.insecure_channel(replica.address) as channel:
        call = weights_pb2_grpc.WeightsStub(channel).Push(timeout=5)
        for number, message in enumerate(messages):
            await call.write(message)
            if number == 0 and "forethought-go-ahead" not in await call.initial_metadata():
                break
        else:
            await call.done_writing()
        return (await call.code()).name, await call.details()


Messages = list[weights_pb2.PushMessage]


def damage_a_chunk(messages: Messages) -> None:
    chunk = bytearray(messages[3].chunk)
    chunk[100] ^= 1
    messages[3].chunk = bytes(chunk)


def swap_two_chunks(messages: Messages) -> None:
    messages[3], messages[4] = messages[4], messages[3]


def damage_a_model_file(messages: Messages) -> None:
    messages[1].chunk = b"[" + messages[1].chunk[1:]


def promise_a_wrong_hash(messages: Messages) -> None:
    header = messages[0].header
    header.manifest.sha256 = header.files[-1].sha256 = "0" * 64


def manifest_of_other_weights(messages: Messages) -> None:
    messages[0].header.manifest.sha256 = "0" * 64


def manifest_of_other_model_files(messages: Messages) -> None:
    messages[0].header.manifest.model_files_sha256 = "0" * 64


def end_early(messages: Messages) -> None:
    del messages[-1]


def end_after_the_header(messages: Messages) -> None:
    del messages[1:]


def go_on_for_a_byte(messages: Messages) -> None:
    messages.append(weights_pb2.PushMessage(chunk=b"x"))


def send_no_header(messages: Messages) -> None:
    del messages[0]


def send_nothing(messages: Messages) -> None:
    messages.clear()


def send_a_second_header(messages: Messages) -> None:
    messages.insert(3, messages[0])


def name_another_model(messages: Messages) -> None:
    messages[0].header.manifest.model = "critic"


def speak_another_wire_version(messages: Messages) -> None:
    messages[0].header.wire_version = WIRE_VERSION + 1


def use_a_delta_codec(messages: Messages) -> None:
    messages[0].header.codec = "xor-delta"


def use_a_base(messages: Messages) -> None:
    messages[0].header.base.CopyFrom(messages[0].header.manifest)


def leave_the_weights_out(messages: Messages) -> None:
    del messages[0].header.files[-1]


def name_a_file_twice(messages: Messages) -> None:
    messages[0].header.files[1].name = messages[0].header.files[0].name


def name_a_file(name: str) -> Callable[[Messages], None]:
    def rename(messages: Messages) -> None:
        messages[0].header.files[0].name = name

    rename.__name__ = f"name_a_file_{name!r}"
    return rename


INVALID = [
    (damage_a_chunk, "arrived damaged"),
    (swap_two_chunks, "arrived damaged"),
    (damage_a_model_file, "config.json arrived damaged"),
    (promise_a_wrong_hash, "model.safetensors arrived damaged"),
    (manifest_of_other_weights, "its manifest"),
    (manifest_of_other_model_files, "the promised model files"),
    (end_early, "bytes short in model.safetensors"),
    (end_after_the_header, "bytes short in config.json"),
    (go_on_for_a_byte, "after the last byte"),
    (send_no_header, "opened with chunk"),
    (send_nothing, "opened with nothing"),
    (send_a_second_header, "something other than chunks"),
    (name_another_model, "serves ['policy']"),
    (
        speak_another_wire_version,
        f"speaks wire version {WIRE_VERSION + 1}, this process speaks {WIRE_VERSION}",
    ),
    (use_a_delta_codec, "codec 'xor-delta' is unknown"),
    (use_a_base, "on a base is unknown"),
    (leave_the_weights_out, "expected model.safetensors"),
    (name_a_file_twice, "every name exactly once"),
    *(
        (name_a_file(name), "may not be pushed")
        for name in (
            "../config.json",
            "/tmp/config.json",
            "sub/config.json",
            ".config.json",
            "pytorch_model.bin",
            "modeling.py",
            "weights.pt",
            "other.safetensors",
            "config.json\n",
            "",
        )
    ),
]


@pytest.mark.parametrize(
    ("spoil", "words"), INVALID, ids=[getattr(case[0], "__name__", "") for case in INVALID]
)
async def test_an_invalid_push_is_refused_whole(replica: FakeReplica, spoil, words: str):
    first = snapshot_of(1)
    await replica.push(first)
    staged = replica.staged
    messages = messages_of(snapshot_of(2))
    spoil(messages)
    code, details = await push_by_hand(replica, messages)
    assert (code, words in details) == ("INVALID_ARGUMENT", True), (code, details)
    assert await replica.status() == {"policy": first.manifest}
    assert replica.orders == [(1, 1)]
    assert replica.staged == staged


async def test_the_unspoilt_messages_are_accepted(replica: FakeReplica):
    """Without this, the pushes above could all be rejected for some other reason."""
    await replica.push(snapshot_of(1))
    assert await push_by_hand(replica, messages_of(snapshot_of(2))) == ("OK", "")
    assert replica.orders == [(1, 1), (1, 2)]


STALE = {
    "older version": (snapshot_of(4), False),
    "same version, other bytes": (snapshot_of(5, content="other "), False),
    "older epoch, higher version": (snapshot_of(900, epoch=1), False),
    "weights alone for other model files": (
        snapshot_of(6, epoch=2, model_files={"config.json": b"[]"}),
        True,
    ),
}


@pytest.mark.parametrize("case", STALE)
async def test_a_stale_push_is_refused_as_a_failed_precondition(replica: FakeReplica, case: str):
    held = snapshot_of(5, epoch=2)
    stale, weights_only = STALE[case]
    if stale.manifest.epoch == 1 and stale.manifest.version < 900:
        held = snapshot_of(5)
    await replica.push(held)
    code, _ = await push_by_hand(replica, messages_of(stale, weights_only=weights_only))
    assert code == "FAILED_PRECONDITION"
    assert await replica.status() == {"policy": held.manifest}
    assert len(replica.applied) == 1


# --- the receiver --------------------------------------------------------------------------------


async def test_a_snapshot_is_applied_complete_and_reported(replica: FakeReplica):
    snapshot = snapshot_of(3)
    assert await replica.status() == {}
    assert await replica.push(snapshot) == snapshot.manifest
    assert replica.applied == [(snapshot.manifest, snapshot.files)]
    assert await replica.status() == {"policy": snapshot.manifest}
    assert replica.staged == sorted(MODEL_FILES), "the weights file stayed in the staging memory"


async def test_the_same_push_again_succeeds_and_is_not_applied_again(replica: FakeReplica):
    snapshot = snapshot_of(3)
    for _ in range(2):
        assert await replica.push(snapshot) == snapshot.manifest
    assert replica.orders == [(1, 3)]


async def test_a_weights_only_push_uses_the_model_files_of_the_previous_push(replica: FakeReplica):
    await replica.push(snapshot_of(1))
    for version in (2, 3):
        await replica.push(snapshot_of(version), weights_only=True)
    assert [files for _, files in replica.applied] == [snapshot_of(v).files for v in (1, 2, 3)]
    assert replica.staged == sorted(MODEL_FILES)


async def test_a_weights_only_push_is_rejected_by_a_replica_that_holds_nothing(
    replica: FakeReplica,
):
    with pytest.raises(Stale, match="nothing is held; push the whole snapshot"):
        await replica.push(snapshot_of(1), weights_only=True)
    assert await replica.status() == {}


async def test_new_model_files_replace_the_old(replica: FakeReplica):
    await replica.push(snapshot_of(1))
    other = snapshot_of(2, model_files={"config.json": b"[]"})
    await replica.push(other)
    assert replica.applied[-1] == (other.manifest, other.files)
    assert replica.staged == ["config.json"]


async def test_a_later_epoch_wins_over_a_higher_version(replica: FakeReplica):
    for order in ((1, 900), (2, 1)):
        await replica.push(snapshot_of(order[1], epoch=order[0]))
    with pytest.raises(Stale):
        await replica.push(snapshot_of(901, epoch=1))
    assert replica.orders == [(1, 900), (2, 1)]


@pytest.mark.parametrize(
    ("refusal", "seen"),
    [(InvalidInput("no such layer"), InvalidInput), (RuntimeError("secret path"), Exception)],
)
async def test_apply_that_raises_leaves_the_old_version(replica: FakeReplica, refusal, seen):
    await replica.push(snapshot_of(1))
    replica.refuse = refusal
    with pytest.raises(seen) as error:
        await replica.push(snapshot_of(2))
    assert ("no such layer" in str(error.value)) == isinstance(refusal, InvalidInput)
    assert "secret" not in str(error.value)
    assert await replica.status() == {"policy": snapshot_of(1).manifest}
    replica.refuse = None
    await replica.push(snapshot_of(2), weights_only=True)
    assert replica.orders == [(1, 1), (1, 2)]


async def test_an_empty_replica_takes_weights_of_its_own_run_only(replica: FakeReplica):
    """A registration may outlive its replica; its address may then be that of another run's."""
    replica.owner = ("b" * 16, 1)
    with pytest.raises(Stale, match="holds nothing; its Redis belongs to run bbbbbbbbbbbbbbbb"):
        await replica.push(snapshot_of(1))
    assert replica.applied == []
    replica.owner = ("a" * 16, 4)
    assert await replica.push(snapshot_of(1)) == snapshot_of(1).manifest


async def test_models_are_held_separately(tmp_path: Path):
    both = frozenset({"policy", "baseline"})
    async with serving(FakeReplica("reward-b2", tmp_path, both)) as replica:
        pushed = [snapshot_of(7), snapshot_of(2, model="baseline")]
        await asyncio.gather(*map(replica.push, pushed))
        assert await replica.status() == {s.manifest.model: s.manifest for s in pushed}
        assert {m.model: files for m, files in replica.applied} == {
            s.manifest.model: s.files for s in pushed
        }


async def test_concurrent_pushes_are_taken_one_at_a_time(replica: FakeReplica):
    running, most = 0, 0
    record = replica.apply

    async def slow_apply(manifest: WeightManifest, directory: Path) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)  # the duration of a switch
        running -= 1
        await record(manifest, directory)

    replica.receiver._apply = slow_apply
    results = await asyncio.gather(
        *(replica.push(snapshot_of(v)) for v in (3, 3, 2, 1)), return_exceptions=True
    )
    assert most == 1
    assert replica.orders == sorted(replica.orders), "a push went back"
    assert (await replica.status())["policy"].version == 3
    assert all(isinstance(r, WeightManifest | Stale) for r in results)


async def test_cancelling_a_push_does_not_interrupt_a_switch_that_has_begun(replica: FakeReplica):
    flipping, go_on = asyncio.Event(), asyncio.Event()
    record = replica.apply

    async def held_apply(manifest: WeightManifest, directory: Path) -> None:
        flipping.set()
        await go_on.wait()
        await record(manifest, directory)

    replica.receiver._apply = held_apply
    push = asyncio.create_task(replica.push(snapshot_of(1)))
    await flipping.wait()
    push.cancel()
    await asyncio.wait({push})
    changed = asyncio.create_task(replica.receiver.wait_for_change())
    await asyncio.sleep(0.1)  # time for the cancellation to reach the replica
    go_on.set()
    await asyncio.wait_for(changed, 5)
    assert replica.applied == [(snapshot_of(1).manifest, snapshot_of(1).files)]
    assert await replica.push(snapshot_of(1)) == snapshot_of(1).manifest


async def test_a_stalled_sender_does_not_block_others(tmp_path: Path):
    async with serving(FakeReplica("rollout-a1", tmp_path, idle_timeout_s=0.2)) as replica:
        stop = asyncio.Event()

        async def silent() -> AsyncIterator[weights_pb2.PushMessage]:
            yield messages_of(snapshot_of(2))[0]
            await stop.wait()

        async with grpc.aio.insecure_channel(replica.address) as channel:
            call = weights_pb2_grpc.WeightsStub(channel).Push(silent(), timeout=10)
            await until(replica.receiver._lock.locked)
            await replica.push(snapshot_of(1))
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
            assert "sent nothing for 0.2 s" in await call.details()
            stop.set()
        assert replica.orders == [(1, 1)]


async def test_waiting_for_weights_ends_with_the_push_that_brings_them(replica: FakeReplica):
    async def wait_until(version: int) -> None:
        while not (held := replica.receiver.holding.get("policy")) or held.version < version:
            await replica.receiver.wait_for_change()

    waiter = asyncio.create_task(wait_until(2))
    await replica.push(snapshot_of(1))
    assert not waiter.done()
    await replica.push(snapshot_of(2))
    await asyncio.wait_for(waiter, 5)


async def test_staging_left_by_a_killed_replica_is_removed_and_nothing_else(tmp_path: Path):
    stranger = tmp_path / "stranger.txt"
    stranger.write_text("keep")
    replica = FakeReplica("rollout-a1", tmp_path)
    async with serving(replica):
        await replica.push(snapshot_of(1))
        async with serving(replica):
            assert replica.staged == ["stranger.txt"]


async def test_a_closed_receiver_leaves_nothing_behind(replica: FakeReplica):
    await replica.push(snapshot_of(1))
    await replica.grpc_server.stop()
    replica.receiver.close()
    assert list(replica.staging.iterdir()) == []


async def test_a_replica_id_that_is_a_path_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="cannot name a directory"):
        await FakeReplica("../escape", tmp_path).start()


async def test_status_refuses_another_wire_version(replica: FakeReplica):
    async with grpc.aio.insecure_channel(replica.address) as channel:
        call = weights_pb2_grpc.WeightsStub(channel).Status(
            weights_pb2.StatusRequest(wire_version=WIRE_VERSION + 1), timeout=5
        )
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_snapshots_hold_only_data_files():
    for name in ("model.bin", "modeling.py", "../up.json", WEIGHTS_FILE):
        with pytest.raises(InvalidInput):
            make_snapshot("policy", 1, 1, "float32", {name: b""}, b"")


# --- the server ----------------------------------------------------------------------------------


async def test_health_follows_readiness(replica: FakeReplica):
    async def health() -> int:
        async with grpc.aio.insecure_channel(replica.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status

    assert await health() == health_pb2.HealthCheckResponse.NOT_SERVING
    await replica.grpc_server.set_ready(True)
    assert await health() == health_pb2.HealthCheckResponse.SERVING


async def test_a_grpc_port_in_use_is_rejected_with_a_clear_message(replica: FakeReplica):
    with pytest.raises(InvalidInput, match="set grpc_port = 0"):
        await start_grpc_server([], "127.0.0.1", replica.grpc_server.port)


async def test_a_chunk_may_be_larger_than_the_default_message_limit(replica: FakeReplica):
    big = make_snapshot("policy", 1, 1, "float32", MODEL_FILES, bytes(6 << 20))
    async with WeightsClient(replica.address, chunk_bytes=8 << 20) as client:
        await client.push(big, weights_only=False, timeout_s=5)
    assert replica.orders == [(1, 1)]


async def test_a_client_without_a_server_raises_unreachable(replica: FakeReplica):
    await replica.grpc_server.stop()
    with pytest.raises(Unreachable, match=f"replica at {replica.address} answered UNAVAILABLE"):
        await replica.status()


async def test_a_push_waits_for_no_other_thread(tmp_path: Path) -> None:
    loop, free = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    other = loop.run_in_executor(None, free.wait)
    async with (
        serving(FakeReplica("rollout-a1", tmp_path)) as replica,
        WeightsClient(replica.address, CHUNK_BYTES) as client,
    ):
        held = await client.push(snapshot_of(1), weights_only=False, timeout_s=5)
        assert held.version == 1
        assert not other.done()
        free.set()
        await other
