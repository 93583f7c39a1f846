"""Task handling shared by all engines: sample requests, size, and validation.

Design: engines differ only in how they sample, so seeds, prefixes and validation are implemented here. A
fault is a value rather than an exception, because the other tasks of the batch must still be served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from forethought.compute.sampling import SampleRequest, TargetText, derive_seed
from forethought.conformance import task_fault
from forethought.scatter import compute_valid
from forethought.types import Position, Rollout, Task, Thought

_MAX_HANDED_ON_TOKENS = 8
"""Of close and target. They are read one a step; for more, a scorer's single pass takes less."""

ThoughtsKG: TypeAlias = tuple[tuple[Thought, ...], ...]


def sample_requests(task: Task) -> list[SampleRequest]:
    """One request per position. The seed of sample g of position k depends only on the task, k and g."""
    sampling, prompting, trunk = task.sampling, task.prompting, task.document.token_ids_N
    return [
        SampleRequest(
            prefix_ids=prompting.thinking_prefix(trunk[: position.index]),
            seeds_G=tuple(
                derive_seed(task.seed, task.task_id, k, g) for g in range(sampling.group_size)
            ),
            max_tokens=sampling.max_thought_tokens,
            temperature=sampling.temperature,
            stop_ids=sampling.stop_ids,
            prediction_tokens=sampling.prediction_tokens,
            prediction_stop_ids=sampling.prediction_stop_ids,
            target=_target(task, position),
            stop_sequences=sampling.stop_sequences,
        )
        for k, position in enumerate(task.positions_K)
    ]


def _target(task: Task, position: Position) -> TargetText | None:
    """What a scorer would compute again from what the sampler has at hand, if the reward needs it."""
    prompting = task.prompting
    target = TargetText(
        prompting.remaining_close(closed=True),
        prompting.remaining_close(closed=False),
        position.target_ids_H,
    )
    is_wanted = task.wants_target and not task.sampling.prediction_tokens
    is_short = bool(position.target_ids_H) and target.max_tokens <= _MAX_HANDED_ON_TOKENS
    return target if is_wanted and is_short else None


def longest_branch(task: Task) -> int:
    """Tokens of the longest branch as sampled or scored, including close and target or prediction."""
    prompting, sampling = task.prompting, task.sampling
    around = prompting.num_thinking_tokens + sampling.max_thought_tokens
    return around + max(
        p.index + max(len(p.target_ids_H), sampling.prediction_tokens) for p in task.positions_K
    )


def fault(task: Task, vocabulary: int, max_length_tokens: int) -> str | None:
    """Why this task cannot be served, or None."""
    if reason := task_fault(task, vocabulary):
        return reason
    if longest_branch(task) > max_length_tokens:
        return (
            f"task {task.task_id} needs {longest_branch(task)} tokens, the model takes "
            f"{max_length_tokens}; lower corpus.window_tokens or sampling.max_thought_tokens"
        )
    return None


def rollouts_of(
    tasks: Sequence[Task],
    faults: Sequence[str | None],
    sample: Callable[[list[Task]], Iterable[ThoughtsKG | str]],
    replica: str,
) -> list[Rollout]:
    """One rollout per task, in order; ``sample`` returns thoughts or an error for each valid task."""
    errors = [
        Rollout(task, replica=replica, error=fault) if fault else None
        for task, fault in zip(tasks, faults, strict=True)
    ]
    return compute_valid(
        tasks,
        errors,
        lambda valid: [
            _rollout(task, sampled, replica)
            for task, sampled in zip(valid, sample(valid), strict=True)
        ],
    )


def _rollout(task: Task, sampled: ThoughtsKG | str, replica: str) -> Rollout:
    if isinstance(sampled, str):
        return Rollout(task, replica=replica, error=sampled)
    logprobs = (p for group in sampled for t in group for p in t.behaviour_logprobs_L)
    if all(map(math.isfinite, logprobs)):
        return Rollout(task, sampled, replica)
    return Rollout(
        task,
        replica=replica,
        error=f"the policy gave task {task.task_id} log-probs that are not finite; its weights overflow "
        "in model.dtype, or are corrupt",
    )
