"""What a task, its rollout and its scores must satisfy to be computed and learned from.

    task       token ids within the vocabulary, positions within the document, sampling that ends
    rollout    G thoughts at each of K positions; each within its budget, ended as it says, with a log-prob
               and a policy version for every token
    scores     G rewards of usable size and the requested log-likelihoods, of versions that can score

Design: a receiver checks a value against the task as it knows it: a reward replica against the copy in the
rollout, the learner against the task it admitted. A fault is a sentence rather than an exception, because
only its own task fails. The price is that the rules of sampling are stated twice, and that invented tokens
and rewards of the right form still pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from forethought.stops import Stops
from forethought.types import Rollout, Sampling, ScoredRollout, Task, Thought, VersionSpan

_ROUNDING_NATS = 1e-3
"""How far above 0 a log-prob may be: engines compute in float32 or less."""

_LEAST_SAMPLED_NATS = -80.0
"""No sampler draws a less likely token, and exp(80), a ratio to it, is still finite in float32."""

_LARGEST_REWARD = 1e12
"""In magnitude; far beyond any in use. A gradient's norm, a sum of squares in float32, is finite at it, so
that one result cannot have a whole batch skipped."""


def task_fault(task: Task, vocabulary: int) -> str | None:
    """Why a model of ``vocabulary`` embeddings cannot serve this task, or None."""
    trunk, sampling = task.document.token_ids_N, task.sampling
    indices = [position.index for position in task.positions_K]
    if not indices:
        return f"task {task.task_id} has no position to think at"
    if max(indices) > len(trunk):
        return f"task {task.task_id} has a position at {max(indices)}, its document {len(trunk)} tokens"
    if not task.prompting.thinking_prefix(trunk[: min(indices)]):
        return f"task {task.task_id} has an empty prompt; expected at least one token"
    if sampling.group_size < 1 or sampling.max_thought_tokens < 1:
        return (
            f"task {task.task_id} requests {sampling.group_size} thoughts of at most "
            f"{sampling.max_thought_tokens} tokens; expected at least one of each"
        )
    if not (math.isfinite(sampling.temperature) and sampling.temperature > 0):
        return (
            f"task {task.task_id} has temperature {sampling.temperature}; expected a finite number "
            "above 0"
        )
    if () in sampling.stop_sequences:
        return (
            f"task {task.task_id} has an empty stop sequence; expected at least one token in each"
        )
    largest_id = max(max(ids, default=0) for ids in _ids_of(task))
    if largest_id >= vocabulary:
        return (
            f"task {task.task_id} has token id {largest_id}, the model {vocabulary} embeddings; "
            "tokenise corpus and prompt with the model's own tokenizer"
        )
    return None


def rollout_fault(rollout: Rollout, vocabulary: int, newest_version: int) -> str | None:
    """Why a rollout without an error does not answer its task, or None.

    ``newest_version`` is the newest policy version that can have sampled it.
    """
    task = rollout.task
    num_groups, num_thoughts = len(rollout.thoughts_KG), task.sampling.group_size
    if num_groups != len(task.positions_K):
        return f"got {num_groups} groups of thoughts, expected {len(task.positions_K)}"
    for k, thoughts_G in enumerate(rollout.thoughts_KG):
        if len(thoughts_G) != num_thoughts:
            return f"got {len(thoughts_G)} thoughts at position {k}, expected {num_thoughts}"
        for g, thought in enumerate(thoughts_G):
            fault = (
                _token_fault(thought, vocabulary)
                or _ending_fault(thought, task.sampling)
                or _span_fault(thought, range(task.min_version, newest_version + 1))
                or _target_fault(thought, len(task.positions_K[k].target_ids_H))
            )
            if fault:
                return f"thought {g} at position {k} {fault}"
    return None


def score_fault(scored: ScoredRollout, newest_version: int) -> str | None:
    """Why scores without an error do not belong to their rollout, which conforms; None if they do."""
    task = scored.rollout.task
    num_positions, num_thoughts = len(task.positions_K), task.sampling.group_size
    rewards = _shape(scored.rewards_KG)
    if rewards != [num_thoughts] * num_positions:
        return f"got rewards of shape {rewards}, expected {[num_thoughts] * num_positions}"
    logprobs, expected = _shape(scored.policy_logprobs_KG), num_thoughts * task.wants_target
    if logprobs != [expected] * num_positions:
        return f"got policy log-probs of shape {logprobs}, expected {[expected] * num_positions}"
    if len(scored.baseline_logprobs_K) != num_positions:
        return f"got {len(scored.baseline_logprobs_K)} baseline log-probs, expected {num_positions}"
    for reward in _flat(scored.rewards_KG):
        if not abs(reward) <= _LARGEST_REWARD:  # nor NaN
            return (
                f"got reward {reward:.6g}, expected a number of magnitude up to {_LARGEST_REWARD:g}"
            )
    for logprob in (*_flat(scored.policy_logprobs_KG), *scored.baseline_logprobs_K):
        if not (math.isfinite(logprob) and logprob <= _ROUNDING_NATS):
            return f"got log-likelihood {logprob:.6g}, expected a finite number of at most 0"
    return _scorer_fault(scored, newest_version)


def newest_possible_version(task: Task) -> int:
    """The newest policy version that can serve or score a task before its batch closes.

    ``max_staleness`` batches close between its admission and its own batch. Each advances the version by
    one, or by two with an interleaved next-token step.
    """
    return task.min_version + 2 * task.max_staleness


def versions_of(rollout: Rollout) -> frozenset[int]:
    """The policy versions that sampled the rollout's tokens; empty for a failed one."""
    return frozenset(span.version for span in _spans(rollout))


def _token_fault(thought: Thought, vocabulary: int) -> str | None:
    ids, logprobs = thought.token_ids_L, thought.behaviour_logprobs_L
    if not ids:
        return "is empty, expected at least one token"
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        return f"has token id {max(ids)}, expected 0 to {vocabulary - 1}"
    if len(logprobs) != len(ids):
        return f"has {len(logprobs)} behaviour log-probs for {len(ids)} tokens, expected one each"
    for logprob in logprobs:
        if not _LEAST_SAMPLED_NATS <= logprob <= _ROUNDING_NATS:
            return f"has behaviour log-prob {logprob:.6g}, expected {_LEAST_SAMPLED_NATS:.0f} to 0"
    return None


def _ending_fault(thought: Thought, sampling: Sampling) -> str | None:
    """A thought ends at its first stop or at its budget; so does a prediction after it."""
    if thought.num_prediction_tokens >= len(thought.token_ids_L):
        return f"predicts {thought.num_prediction_tokens} of its {len(thought.token_ids_L)} tokens"
    stops = Stops(sampling.stop_ids, sampling.stop_sequences)
    fault = _length_fault("thought", thought.thought_ids, sampling.max_thought_tokens, stops)
    if fault:
        return fault
    if thought.closed != stops.end_here(thought.thought_ids):
        says, is_so = ("closed", "no stop token") if thought.closed else ("truncated", "one")
        return f"is said to be {says} and ends with {is_so}, token {thought.thought_ids[-1]}"
    if not (thought.closed and sampling.prediction_tokens):
        num_predicted = thought.num_prediction_tokens
        return f"has {num_predicted} predicted tokens, expected none" if num_predicted else None
    return _length_fault(
        "prediction",
        thought.prediction_ids,
        sampling.prediction_tokens,
        Stops(sampling.prediction_stop_ids),
    )


def _length_fault(what: str, ids: tuple[int, ...], budget_tokens: int, stops: Stops) -> str | None:
    end = stops.end(ids)
    if end is not None and end < len(ids):
        return f"has a {what} that goes on after a stop token"
    if len(ids) == budget_tokens or (end is not None and len(ids) < budget_tokens):
        return None
    return (
        f"has a {what} of {len(ids)} tokens, expected {budget_tokens}, or fewer up to a stop token"
    )


def _span_fault(thought: Thought, possible: range) -> str | None:
    num_covered = sum(span.num_tokens for span in thought.version_spans)
    if num_covered != len(thought.token_ids_L):
        return f"has policy versions for {num_covered} of {len(thought.token_ids_L)} tokens"
    for span in thought.version_spans:
        if span.version not in possible:
            return f"is by policy version {span.version}, expected {_interval(possible)}"
    return None


def _target_fault(thought: Thought, num_target_tokens: int) -> str | None:
    """Log-probs of the target are all there, by the one version that sampled the thought, or none is."""
    logprobs = thought.target_logprobs_H
    if not logprobs:
        return None
    if len(logprobs) != num_target_tokens:
        return f"has {len(logprobs)} target log-probs for {num_target_tokens} tokens, expected one each"
    if len({span.version for span in thought.version_spans}) != 1:
        return "has target log-probs and tokens of several policy versions, expected one version"
    for logprob in logprobs:
        if not (math.isfinite(logprob) and logprob <= _ROUNDING_NATS):
            return f"has target log-prob {logprob:.6g}, expected a finite number of at most 0"
    return None


def _scorer_fault(scored: ScoredRollout, newest_version: int) -> str | None:
    policy, baseline = scored.policy_version, scored.baseline_version
    possible = range(max(versions_of(scored.rollout)), newest_version + 1)
    if policy not in possible:
        return f"got scores by policy version {policy}, expected {_interval(possible)}"
    if "baseline" not in scored.rollout.task.models and baseline != policy:
        return f"got baseline version {baseline}, expected the policy's, {policy}: it has no other"
    if baseline > newest_version:
        return f"got scores by baseline version {baseline}, expected at most {newest_version}"
    return None


def _ids_of(task: Task) -> Iterator[Sequence[int]]:
    """Everything a model reads or scores. A stop token outside the vocabulary is merely never sampled."""
    prompting = task.prompting
    yield task.document.token_ids_N
    yield from (prompting.bos_ids, prompting.head_ids, prompting.bridge_ids, prompting.close_ids)
    yield prompting.no_think_head_ids
    yield from (position.target_ids_H for position in task.positions_K)


def _spans(rollout: Rollout) -> Iterator[VersionSpan]:
    for thoughts_G in rollout.thoughts_KG:
        for thought in thoughts_G:
            yield from thought.version_spans


def _shape(values_KG: Sequence[Sequence[float]]) -> list[int]:
    return [len(values_G) for values_G in values_KG]


def _flat(values_KG: Iterable[Iterable[float]]) -> Iterator[float]:
    return (value for values_G in values_KG for value in values_G)


def _interval(versions: range) -> str:
    return f"{versions.start}" if len(versions) == 1 else f"{versions.start} to {versions.stop - 1}"
