"""Conversion between the dataclasses of :mod:`forethought.types` and protobuf messages.

Token ids become little-endian uint32 and log-probs little-endian float32 in ``bytes`` fields. The
price is one rounding of log-probs to float32, the precision engines compute them in anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

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
from forethought.wire.packing import pack_floats, pack_ids, unpack_floats, unpack_ids
from forethought.wire.v1 import reward_pb2, rollout_pb2, weights_pb2

WIRE_VERSION = 2
"""Incremented whenever an old peer could misread a new message. 2: a prompt's BOS, the run's id."""

_OLDEST_READ = 1
"""Journals and checkpoints of this version are still read; its fields mean what they meant."""

M = TypeVar("M", bound=Message)


def check_wire_version(got: int, what: str) -> None:
    """Refuse a wire version that this process would misread.

    Raises:
        InvalidInput: the version is newer than this process's, or none.
    """
    if not _OLDEST_READ <= got <= WIRE_VERSION:
        raise InvalidInput(
            f"{what} speaks wire version {got}, this process speaks {WIRE_VERSION}; "
            "run the same Forethought release on both sides"
        )


def encode_task(task: Task) -> bytes:
    """Serialise a task."""
    return _task_to_proto(task).SerializeToString()


def decode_task(data: bytes) -> Task:
    """Parse a task.

    Raises:
        InvalidInput: not a task, or of another wire version.
    """
    return _task_from_proto(_parse(rollout_pb2.Task, data))


def encode_rollout(rollout: Rollout) -> bytes:
    """Serialise a rollout with its task."""
    return _rollout_to_proto(rollout).SerializeToString()


def decode_rollout(data: bytes) -> Rollout:
    """Parse a rollout.

    Raises:
        InvalidInput: not a rollout, or of another wire version.
    """
    return _rollout_from_proto(_parse(rollout_pb2.Rollout, data))


def encode_scored(scored: ScoredRollout) -> bytes:
    """Serialise a scored rollout with its rollout and task."""
    return _scored_to_proto(scored).SerializeToString()


def decode_scored(data: bytes) -> ScoredRollout:
    """Parse a scored rollout.

    Raises:
        InvalidInput: not a scored rollout, or of another wire version.
    """
    return _scored_from_proto(_parse(reward_pb2.ScoredRollout, data))


def encode_tasks(tasks: Iterable[Task]) -> bytes:
    """Serialise outstanding tasks for a checkpoint."""
    message = reward_pb2.TaskList(wire_version=WIRE_VERSION, tasks=map(_task_to_proto, tasks))
    return message.SerializeToString()


def decode_tasks(data: bytes) -> tuple[Task, ...]:
    """Parse a checkpoint's outstanding tasks."""
    return tuple(map(_task_from_proto, _parse(reward_pb2.TaskList, data).tasks))


def encode_journal_batch(
    epoch: int, batch: int, version: int, results: Iterable[ScoredRollout]
) -> bytes:
    """Serialise one closed batch for the journal."""
    message = reward_pb2.JournalBatch(
        wire_version=WIRE_VERSION,
        epoch=epoch,
        batch=batch,
        version=version,
        results=map(_scored_to_proto, results),
    )
    return message.SerializeToString()


def decode_journal_batch(data: bytes) -> tuple[int, int, int, tuple[ScoredRollout, ...]]:
    """Parse one journal record into (epoch, batch, version, results)."""
    message = _parse(reward_pb2.JournalBatch, data)
    results = tuple(map(_scored_from_proto, message.results))
    return message.epoch, message.batch, message.version, results


def manifest_to_proto(manifest: WeightManifest) -> weights_pb2.Manifest:
    """The message of a manifest."""
    return weights_pb2.Manifest(
        model=manifest.model,
        epoch=manifest.epoch,
        version=manifest.version,
        sha256=manifest.sha256,
        model_files_sha256=manifest.model_files_sha256,
        dtype=manifest.dtype,
        num_bytes=manifest.num_bytes,
        run_id=manifest.run_id,
    )


def manifest_from_proto(message: weights_pb2.Manifest) -> WeightManifest:
    """The manifest of a message."""
    return WeightManifest(
        model=message.model,
        epoch=message.epoch,
        version=message.version,
        sha256=message.sha256,
        model_files_sha256=message.model_files_sha256,
        dtype=message.dtype,
        num_bytes=message.num_bytes,
        run_id=message.run_id,
    )


def prompting_to_proto(prompting: Prompting) -> rollout_pb2.Prompting:
    """The message of a prompting."""
    return rollout_pb2.Prompting(
        head_ids=pack_ids(prompting.head_ids),
        bridge_ids=pack_ids(prompting.bridge_ids),
        close_ids=pack_ids(prompting.close_ids),
        no_think_head_ids=pack_ids(prompting.no_think_head_ids),
        bos_ids=pack_ids(prompting.bos_ids),
        further_open_tokens=prompting.num_open_tokens - 1,
        further_close_tokens=prompting.num_close_tokens - 1,
    )


def prompting_from_proto(message: rollout_pb2.Prompting) -> Prompting:
    """The prompting of a message."""
    return Prompting(
        head_ids=unpack_ids(message.head_ids),
        bridge_ids=unpack_ids(message.bridge_ids),
        close_ids=unpack_ids(message.close_ids),
        no_think_head_ids=unpack_ids(message.no_think_head_ids),
        bos_ids=unpack_ids(message.bos_ids),
        num_open_tokens=message.further_open_tokens + 1,
        num_close_tokens=message.further_close_tokens + 1,
    )


def sampling_to_proto(sampling: Sampling) -> rollout_pb2.Sampling:
    """The message of sampling parameters."""
    return rollout_pb2.Sampling(
        group_size=sampling.group_size,
        max_thought_tokens=sampling.max_thought_tokens,
        temperature=sampling.temperature,
        stop_ids=pack_ids(sampling.stop_ids),
        prediction_tokens=sampling.prediction_tokens,
        prediction_stop_ids=pack_ids(sampling.prediction_stop_ids),
        stop_sequences=map(pack_ids, sampling.stop_sequences),
    )


def sampling_from_proto(message: rollout_pb2.Sampling) -> Sampling:
    """The sampling parameters of a message."""
    return Sampling(
        group_size=message.group_size,
        max_thought_tokens=message.max_thought_tokens,
        temperature=message.temperature,
        stop_ids=unpack_ids(message.stop_ids),
        prediction_tokens=message.prediction_tokens,
        prediction_stop_ids=unpack_ids(message.prediction_stop_ids),
        stop_sequences=tuple(map(unpack_ids, message.stop_sequences)),
    )


def _parse(kind: type[M], data: bytes) -> M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InvalidInput(
            f"{len(data)} bytes are not a {kind.DESCRIPTOR.name} message; "
            "expected protobuf written by Forethought"
        ) from error
    check_wire_version(getattr(message, "wire_version", 0), f"a {kind.DESCRIPTOR.name} message")
    return message


def _document_to_proto(document: Document) -> rollout_pb2.Document:
    return rollout_pb2.Document(
        document_id=document.document_id,
        source=document.source,
        token_ids=pack_ids(document.token_ids_N),
        token_bytes=pack_ids(document.token_bytes_N),
        marks=pack_ids(document.marks),
        entropies=pack_floats(document.entropies_N),
        nll_weights=pack_floats(document.nll_weights_N),
    )


def _document_from_proto(message: rollout_pb2.Document) -> Document:
    return Document(
        document_id=message.document_id,
        source=message.source,
        token_ids_N=unpack_ids(message.token_ids),
        token_bytes_N=unpack_ids(message.token_bytes),
        marks=unpack_ids(message.marks),
        entropies_N=unpack_floats(message.entropies),
        nll_weights_N=unpack_floats(message.nll_weights),
    )


def _task_to_proto(task: Task) -> rollout_pb2.Task:
    return rollout_pb2.Task(
        wire_version=WIRE_VERSION,
        task_id=task.task_id,
        epoch=task.epoch,
        batch=task.batch,
        min_version=task.min_version,
        objective=task.objective,
        objective_json=task.objective_json,
        document=_document_to_proto(task.document),
        positions=[
            rollout_pb2.Position(index=p.index, target_ids=pack_ids(p.target_ids_H))
            for p in task.positions_K
        ],
        prompting=prompting_to_proto(task.prompting),
        sampling=sampling_to_proto(task.sampling),
        seed=task.seed,
        max_staleness=task.max_staleness,
        models=task.models,
        traceparent=task.traceparent,
        run_id=task.run_id,
    )


def _task_from_proto(message: rollout_pb2.Task) -> Task:
    check_wire_version(message.wire_version, "a Task message")
    return Task(
        task_id=message.task_id,
        epoch=message.epoch,
        batch=message.batch,
        min_version=message.min_version,
        objective=message.objective,
        objective_json=message.objective_json,
        document=_document_from_proto(message.document),
        positions_K=tuple(Position(p.index, unpack_ids(p.target_ids)) for p in message.positions),
        prompting=prompting_from_proto(message.prompting),
        sampling=sampling_from_proto(message.sampling),
        seed=message.seed,
        max_staleness=message.max_staleness,
        models=tuple(message.models),
        traceparent=message.traceparent,
        run_id=message.run_id,
    )


def thought_to_proto(thought: Thought) -> rollout_pb2.Thought:
    """The message of a thought."""
    return rollout_pb2.Thought(
        token_ids=pack_ids(thought.token_ids_L),
        behaviour_logprobs=pack_floats(thought.behaviour_logprobs_L),
        version_spans=[
            rollout_pb2.VersionSpan(version=s.version, num_tokens=s.num_tokens)
            for s in thought.version_spans
        ],
        closed=thought.closed,
        num_prediction_tokens=thought.num_prediction_tokens,
        target_logprobs=pack_floats(thought.target_logprobs_H),
    )


def thought_from_proto(message: rollout_pb2.Thought) -> Thought:
    """The thought of a message."""
    return Thought(
        token_ids_L=unpack_ids(message.token_ids),
        behaviour_logprobs_L=unpack_floats(message.behaviour_logprobs),
        version_spans=tuple(VersionSpan(s.version, s.num_tokens) for s in message.version_spans),
        closed=message.closed,
        num_prediction_tokens=message.num_prediction_tokens,
        target_logprobs_H=unpack_floats(message.target_logprobs),
    )


def _rollout_to_proto(rollout: Rollout) -> rollout_pb2.Rollout:
    return rollout_pb2.Rollout(
        wire_version=WIRE_VERSION,
        task=_task_to_proto(rollout.task),
        groups=[
            rollout_pb2.Group(thoughts=map(thought_to_proto, thoughts_G))
            for thoughts_G in rollout.thoughts_KG
        ],
        replica=rollout.replica,
        error=rollout.error,
    )


def _rollout_from_proto(message: rollout_pb2.Rollout) -> Rollout:
    check_wire_version(message.wire_version, "a Rollout message")
    return Rollout(
        task=_task_from_proto(message.task),
        thoughts_KG=tuple(
            tuple(map(thought_from_proto, group.thoughts)) for group in message.groups
        ),
        replica=message.replica,
        error=message.error if message.HasField("error") else None,
    )


def _scored_to_proto(scored: ScoredRollout) -> reward_pb2.ScoredRollout:
    likelihoods = zip(
        scored.rewards_KG, scored.policy_logprobs_KG, scored.baseline_logprobs_K, strict=True
    )
    return reward_pb2.ScoredRollout(
        wire_version=WIRE_VERSION,
        rollout=_rollout_to_proto(scored.rollout),
        groups=[
            reward_pb2.ScoredGroup(
                rewards=pack_floats(rewards_G),
                policy_logprobs=pack_floats(policy_logprobs_G),
                baseline_logprob=baseline_logprob,
            )
            for rewards_G, policy_logprobs_G, baseline_logprob in likelihoods
        ],
        policy_version=scored.policy_version,
        baseline_version=scored.baseline_version,
        replica=scored.replica,
        error=scored.error,
    )


def _scored_from_proto(message: reward_pb2.ScoredRollout) -> ScoredRollout:
    check_wire_version(message.wire_version, "a ScoredRollout message")
    return ScoredRollout(
        rollout=_rollout_from_proto(message.rollout),
        rewards_KG=tuple(unpack_floats(group.rewards) for group in message.groups),
        policy_logprobs_KG=tuple(unpack_floats(group.policy_logprobs) for group in message.groups),
        baseline_logprobs_K=tuple(group.baseline_logprob for group in message.groups),
        policy_version=message.policy_version,
        baseline_version=message.baseline_version,
        replica=message.replica,
        error=message.error if message.HasField("error") else None,
    )
