"""Scored rollouts sampled by a tiny model, with rewards chosen by the test."""

from __future__ import annotations

import math
from dataclasses import replace

from forethought.compute.model import LanguageModel
from forethought.compute.sampling import SampleRequest, derive_seed, sample
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
)
from tests import tiny

TEMPERATURE = 0.8
GROUP_SIZE = 3
PROMPTING = Prompting(bridge_ids=(10, tiny.OPEN_ID), close_ids=(tiny.CLOSE_ID, 11))
INDICES = ((4,), (2, 7), (9,))


def make_results(
    language_model: LanguageModel, shift: float = 0.0, prompting: Prompting = PROMPTING
) -> list[ScoredRollout]:
    """Three tasks, one with two positions; rewards differ, likelihoods are 0."""
    return [
        _result(language_model, i, indices, shift, prompting) for i, indices in enumerate(INDICES)
    ]


def off_policy(results: list[ScoredRollout]) -> list[ScoredRollout]:
    """The same thoughts with behaviour log-probs that differ, so that ratios leave 1 and clip."""

    def changed(thought: Thought) -> Thought:
        logprobs = (p + 0.4 * math.cos(3 * i) for i, p in enumerate(thought.behaviour_logprobs_L))
        return replace(thought, behaviour_logprobs_L=tuple(logprobs))

    return [
        replace(
            r,
            rollout=replace(
                r.rollout,
                thoughts_KG=tuple(tuple(map(changed, group)) for group in r.rollout.thoughts_KG),
            ),
        )
        for r in results
    ]


def _result(
    language_model: LanguageModel,
    task_id: int,
    indices: tuple[int, ...],
    shift: float,
    prompting: Prompting,
) -> ScoredRollout:
    trunk = tuple(20 + (7 * task_id + 3 * i) % 90 for i in range(12))
    sampling = Sampling(GROUP_SIZE, 6, TEMPERATURE, (tiny.CLOSE_ID,))
    task = Task(
        task_id, 1, 0, 0, "rlp", "{}", Document(f"d{task_id}", "s", trunk),
        tuple(Position(i, trunk[i : i + 1]) for i in indices), prompting, sampling, seed=3,
    )  # fmt: skip
    requests = [
        SampleRequest(
            prompting.thinking_prefix(trunk[:i]),
            tuple(derive_seed(task_id, i, g) for g in range(GROUP_SIZE)),
            6, TEMPERATURE, (tiny.CLOSE_ID,),
        )
        for i in indices
    ]  # fmt: skip
    thoughts_KG = tuple(
        tuple(
            Thought(s.token_ids_L, s.logprobs_L, (VersionSpan(0, len(s.token_ids_L)),), s.stopped)
            for s in group
        )
        for group in sample(language_model.model, requests)
    )
    rewards_KG = tuple(
        tuple(math.sin(task_id + 2 * k + 5 * g) + shift for g in range(GROUP_SIZE))
        for k in range(len(indices))
    )
    zeros_KG = tuple((0.0,) * GROUP_SIZE for _ in indices)
    return ScoredRollout(Rollout(task, thoughts_KG), rewards_KG, zeros_KG, (0.0,) * len(indices))
