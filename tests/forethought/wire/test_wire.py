"""The wire format: values round-trip, foreign data is rejected clearly, and the bytes are pinned."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import pytest

from forethought import wire
from forethought.errors import InvalidInput
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
    WeightManifest,
)
from forethought.wire.v1 import reward_pb2, rollout_pb2, weights_pb2

LARGEST_ID = 2**32 - 1

DOCUMENT = Document(
    document_id="Füße/日本語.txt#3:0",
    source="märchen",
    token_ids_N=(5, 17, 9, 0, LARGEST_ID),
    token_bytes_N=(1, 4, 2, 0, 3),
    marks=(2, 4),
    entropies_N=(0.5, 2.25, 0.125, 0.0, 7.5),
    nll_weights_N=(0.0, 1.0, 0.25, 1.0, 1.0),
)
FULL_TASK = Task(
    task_id=2**40,
    epoch=3,
    batch=17,
    min_version=16,
    objective="meine.Ziele.größer",
    objective_json='{"positions":"marked"}',
    document=DOCUMENT,
    positions_K=(Position(1, (17, 9, 0)), Position(2, (9, 0, LARGEST_ID))),  # K=2, H=3
    prompting=Prompting((1, 2), (3, 39), (40, 4), (6,), (7,), 2, 3),
    sampling=Sampling(2, 9, 0.7, (40, 41), 3, (5, 6), ((40, 4), (LARGEST_ID, 0, 7))),
    seed=2**63 - 1,
    max_staleness=2,
    models=("policy",),
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    run_id="cd" * 8,
)
SPANS = (VersionSpan(16, 1), VersionSpan(17, 2))
THOUGHT = Thought((4, 40, 6), (-0.125, -0.75, -0.5), SPANS, True, 1, target_logprobs_H=(-0.25,))
TRUNCATED = Thought((7, 8), (-1.5, -2.0), (VersionSpan(17, 2),), False, 2, (-3.5,))
FULL_ROLLOUT = Rollout(
    FULL_TASK, ((THOUGHT, TRUNCATED), (TRUNCATED, THOUGHT)), "röllout-a1", "halb verstanden"
)
FULL_SCORED = ScoredRollout(
    rollout=FULL_ROLLOUT,
    rewards_KG=((0.5, -0.25), (1.0, 0.0)),
    policy_logprobs_KG=((-0.5, -1.25), (-1.0, -2.0)),
    baseline_logprobs_K=(-1.0, -2.0),
    policy_version=17,
    baseline_version=18,
    replica="reward-b2",
    error="schade ☹",
)
MANIFEST = WeightManifest("baseline", 2, 2**40, "9f" * 32, "4c" * 32, "bfloat16", 2**41, "ab" * 8)

LEAST_TASK = Task(
    0, 0, 0, 0, "", "", Document("", "", ()), (), Prompting(), Sampling(0, 0, 0.0), 0, models=()
)
GOLDEN_TASK = Task(
    70, 1, 2, 2, "rlp", "{}",
    Document("notes.txt#3:0", "notes", (5, 17, 9), (1, 4, 2), (2,)),
    (Position(2, (9,)),), Prompting((), (39,), (40,)), Sampling(8, 9, 1.0, (40,)), 17,
    traceparent="00-ab-cd-01",
)  # fmt: skip
GOLDEN_BYTES = bytes.fromhex(
    "080210461801200228023203726c703a027b7d42380a0d6e6f7465732e74787423333a3012056e6f"
    "7465731a0c050000001100000009000000220c0100000004000000020000002a04020000004a0808"
    "02120409000000520c1204270000001a04280000005a130808100919000000000000f03f22042800"
    "000060117206706f6c6963797208626173656c696e657a0b30302d61622d63642d3031"
)


def nested(value: Any) -> Iterator[Any]:
    """Every dataclass inside ``value``, itself included."""
    if is_dataclass(value):
        yield value
        for field in fields(value):
            yield from nested(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from nested(item)


def test_the_fullest_value_leaves_no_field_at_its_default() -> None:
    """Otherwise a field the codec omits would compare equal by chance."""
    forgotten = [
        f"{type(value).__name__}.{field.name}"
        for value in nested((FULL_SCORED, MANIFEST))
        for field in fields(value)
        if field.default is not MISSING and getattr(value, field.name) == field.default
    ]
    assert forgotten == []


@pytest.mark.parametrize(
    "task",
    [FULL_TASK, LEAST_TASK, GOLDEN_TASK, replace(FULL_TASK, positions_K=())],
    ids=["full", "least", "golden", "no-positions"],
)
def test_tasks_round_trip(task: Task) -> None:
    assert wire.decode_task(wire.encode_task(task)) == task


@pytest.mark.parametrize(
    "rollout",
    [
        FULL_ROLLOUT,
        Rollout(LEAST_TASK),
        Rollout(FULL_TASK, replica="a", error="out of memory"),
        Rollout(FULL_TASK, error=""),
        Rollout(FULL_TASK, ((), (Thought((), (), (), False),))),
    ],
    ids=["full", "least", "failed", "empty-error", "empty-thoughts"],
)
def test_rollouts_round_trip(rollout: Rollout) -> None:
    assert wire.decode_rollout(wire.encode_rollout(rollout)) == rollout


@pytest.mark.parametrize(
    "scored",
    [
        FULL_SCORED,
        ScoredRollout(Rollout(LEAST_TASK)),
        ScoredRollout(Rollout(FULL_TASK, error="no replica"), replica="b"),
        ScoredRollout(FULL_ROLLOUT, error="not finite"),
    ],
    ids=["full", "least", "failed-rollout", "failed-score"],
)
def test_scored_rollouts_round_trip(scored: ScoredRollout) -> None:
    back = wire.decode_scored(wire.encode_scored(scored))
    assert back == scored
    assert back.failure == scored.failure


def test_an_absent_error_is_not_an_empty_one() -> None:
    sound = ScoredRollout(Rollout(FULL_TASK))
    assert wire.decode_scored(wire.encode_scored(sound)).failure is None


@pytest.mark.parametrize("tasks", [(), (FULL_TASK, LEAST_TASK, FULL_TASK)])
def test_outstanding_tasks_round_trip_in_order(tasks: tuple[Task, ...]) -> None:
    assert wire.decode_tasks(wire.encode_tasks(iter(tasks))) == tasks


@pytest.mark.parametrize("results", [(), (FULL_SCORED, ScoredRollout(Rollout(LEAST_TASK)))])
def test_journal_batches_round_trip(results: tuple[ScoredRollout, ...]) -> None:
    record = wire.decode_journal_batch(wire.encode_journal_batch(3, 2**33, 99, results))
    assert record == (3, 2**33, 99, results)


def test_manifests_round_trip() -> None:
    data = wire.manifest_to_proto(MANIFEST).SerializeToString()
    assert wire.manifest_from_proto(weights_pb2.Manifest.FromString(data)) == MANIFEST


def test_logprobs_are_rounded_once_to_float32() -> None:
    """0.1 is decoded as its nearest float32, which then round-trips unchanged."""
    thought = Thought((1,), (-0.1,), (VersionSpan(0, 1),), True)
    group = ScoredRollout(
        Rollout(GOLDEN_TASK, ((thought,),)), ((0.1,),), ((-1 / 3,),), (math.pi,), 0, 0
    )
    once = wire.decode_scored(wire.encode_scored(group))
    nearest = struct.unpack("<4f", struct.pack("<4f", -0.1, 0.1, -1 / 3, math.pi))
    assert once.rollout.thoughts_KG[0][0].behaviour_logprobs_L == nearest[:1]
    assert once.rewards_KG == (nearest[1:2],)
    assert once.policy_logprobs_KG == (nearest[2:3],)
    assert once.baseline_logprobs_K == nearest[3:]
    assert nearest[0] != -0.1
    assert wire.decode_scored(wire.encode_scored(once)) == once


def test_the_temperature_is_not_rounded() -> None:
    """It enters every log-prob on both sides, so both must divide by the same number."""
    task = replace(FULL_TASK, sampling=Sampling(2, 9, 0.7))
    assert wire.decode_task(wire.encode_task(task)).sampling.temperature == 0.7


def test_infinite_logprobs_round_trip() -> None:
    thought = Thought((1, 2), (-math.inf, math.nan), (VersionSpan(0, 2),), False)
    back = wire.decode_rollout(wire.encode_rollout(Rollout(GOLDEN_TASK, ((thought,),))))
    infinite, nan = back.thoughts_KG[0][0].behaviour_logprobs_L
    assert infinite == -math.inf
    assert math.isnan(nan)


def test_golden_bytes() -> None:
    """A difference here is a schema change: consider peers and journals that use the old one,
    raise ``WIRE_VERSION`` if they could misread it, and only then renew the constant.
    """
    assert wire.encode_task(GOLDEN_TASK).hex() == GOLDEN_BYTES.hex()
    assert wire.decode_task(GOLDEN_BYTES) == GOLDEN_TASK


def test_a_task_of_an_older_release_is_read() -> None:
    """Checkpoints and journals hold them; what version 2 added is empty."""
    assert GOLDEN_BYTES[:2] == b"\x08\x02"
    assert wire.decode_task(b"\x08\x01" + GOLDEN_BYTES[2:]) == GOLDEN_TASK


_NEXT = wire.WIRE_VERSION + 1
Decoder = Callable[[bytes], Any]

DECODERS: list[tuple[Decoder, Any]] = [
    (wire.decode_task, rollout_pb2.Task),
    (wire.decode_rollout, rollout_pb2.Rollout),
    (wire.decode_scored, reward_pb2.ScoredRollout),
    (wire.decode_tasks, reward_pb2.TaskList),
    (wire.decode_journal_batch, reward_pb2.JournalBatch),
]


@pytest.mark.parametrize(("decode", "kind"), DECODERS)
@pytest.mark.parametrize("version", [0, _NEXT])
def test_another_wire_version_is_rejected_with_a_clear_message(
    decode: Decoder, kind: Any, version: int
) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(kind(wire_version=version).SerializeToString())
    words = str(refused.value)
    assert f"speaks wire version {version}" in words
    assert f"this process speaks {wire.WIRE_VERSION}" in words
    assert "same Forethought release" in words


@pytest.mark.parametrize(
    "message",
    [
        rollout_pb2.Rollout(wire_version=1, task=rollout_pb2.Task(wire_version=_NEXT)),
        reward_pb2.TaskList(wire_version=1, tasks=[rollout_pb2.Task(wire_version=_NEXT)]),
        reward_pb2.ScoredRollout(wire_version=1, rollout=rollout_pb2.Rollout(wire_version=_NEXT)),
        reward_pb2.JournalBatch(
            wire_version=1, results=[reward_pb2.ScoredRollout(wire_version=_NEXT)]
        ),
    ],
)
def test_a_nested_message_of_another_version_is_rejected(message: Any) -> None:
    decode = next(decode for decode, kind in DECODERS if isinstance(message, kind))
    with pytest.raises(InvalidInput, match=f"speaks wire version {_NEXT}"):
        decode(message.SerializeToString())


@pytest.mark.parametrize(("decode", "kind"), DECODERS)
@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff", b"not protobuf at all", b"\x80", b'{"task_id": 1}'],
    ids=["tags", "text", "half-a-varint", "json"],
)
def test_garbage_is_rejected_with_a_clear_message(decode: Decoder, kind: Any, data: bytes) -> None:
    with pytest.raises(InvalidInput, match=f"{kind.DESCRIPTOR.name} message"):
        decode(data)


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_a_truncated_message_is_rejected_or_differs(length: int) -> None:
    data = wire.encode_task(GOLDEN_TASK)
    with contextlib.suppress(InvalidInput):
        assert wire.decode_task(data[:-length]) != GOLDEN_TASK


def test_a_packed_field_of_odd_length_is_rejected() -> None:
    message = rollout_pb2.Task(wire_version=wire.WIRE_VERSION)
    message.document.token_ids = b"\x01\x02\x03"
    with pytest.raises(InvalidInput, match="3 bytes; expected a multiple of 4"):
        wire.decode_task(message.SerializeToString())


def test_a_matching_version_passes() -> None:
    wire.check_wire_version(wire.WIRE_VERSION, "a peer")
