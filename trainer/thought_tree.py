"""Thought trees: what the learner is given, blind to the objective that made them.

A tree is one trunk with branches that leave it at some index; everything to be learned stands in
per-token arrays: a surrogate weight with its advantage and behaviour log-prob, or a next-token weight.
Next-token prediction, SFT, best-of-G cloning and reinforcement differ only in these numbers.

Design: trees keep the trunk once, although today's batching writes it out per branch, so that
computing it once for all thoughts changes the batching and nothing before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forethought.estimators import Estimator
from forethought.objectives import Objective
from forethought.types import Document, ScoredRollout, Task, Thought


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that follow ``trunk[:index]``, with one number of each array per token.

    ``behaviour_logprobs_T`` are at ``temperature``; where ``weights_T`` is 0 they are not read.

    Example:
        ``Branch(10, (39, 4, 40), (0.0, 0.5, 0.5), (0.0, 1.2, 1.2), (0.0, -0.7, -0.1), 1.0)``
    """

    index: int
    token_ids_T: tuple[int, ...]
    weights_T: tuple[float, ...]
    advantages_T: tuple[float, ...]
    behaviour_logprobs_T: tuple[float, ...]
    temperature: float


@dataclass(frozen=True, slots=True)
class ThoughtTree:
    """A trunk, the next-token weights of its tokens (empty: none), and the branches that leave it.

    Example:
        ``ThoughtTree(head_ids=(), trunk_ids_N=(1, 5, 9), nll_weights_N=(0.0, 0.5, 0.5))``
    """

    head_ids: tuple[int, ...]
    trunk_ids_N: tuple[int, ...]
    nll_weights_N: tuple[float, ...] = ()
    branches: tuple[Branch, ...] = field(default=())


def trees_of_results(
    results: Sequence[ScoredRollout], objective: Objective, estimator: Estimator
) -> list[ThoughtTree]:
    """Trees of a batch's sound results: advantages, and weights normalised by the groups that are left.

    The loss is the mean over groups and thoughts of the objective's token weighting (RLP eq. 8).
    """
    sound = [result for result in results if result.failure is None]
    rewards_BG = [rewards_G for result in sound for rewards_G in result.rewards_KG]
    advantages_BG = iter(estimator.advantages(rewards_BG))
    return [
        ThoughtTree(
            head_ids=result.rollout.task.prompting.head_ids,
            trunk_ids_N=result.rollout.task.document.token_ids_N,
            branches=tuple(
                branch
                for k, thoughts_G in enumerate(result.rollout.thoughts_KG)
                for branch in _branches(
                    result.rollout.task,
                    result.rollout.task.positions_K[k].index,
                    thoughts_G,
                    next(advantages_BG),
                    objective,
                    num_groups=len(rewards_BG),
                )
            ),
        )
        for result in sound
    ]


def trees_of_documents(documents: Sequence[Document]) -> list[ThoughtTree]:
    """Trees that learn documents by next-token loss, averaged over the tokens of the whole batch.

    The first token of a document is predicted by nothing and weighs nothing.
    """
    weights = [_document_weights(document) for document in documents]
    total = sum(map(sum, weights)) or 1.0
    return [
        ThoughtTree((), document.token_ids_N, tuple(weight / total for weight in weights_N))
        for document, weights_N in zip(documents, weights, strict=True)
    ]


def _document_weights(document: Document) -> list[float]:
    given = document.nll_weights_N or (1.0,) * len(document.token_ids_N)
    return [0.0, *given[1:]]


def _branches(
    task: Task,
    index: int,
    thoughts_G: Sequence[Thought],
    advantages_G: Sequence[float],
    objective: Objective,
    num_groups: int,
) -> list[Branch]:
    bridge = task.prompting.bridge_ids
    nothing = (0.0,) * len(bridge)
    token_weights_G = objective.token_weights([len(t.token_ids_L) for t in thoughts_G])
    scale = 1.0 / (num_groups * len(thoughts_G))
    return [
        Branch(
            index=index,
            token_ids_T=bridge + thought.token_ids_L,
            weights_T=nothing + (scale * weight,) * len(thought.token_ids_L),
            advantages_T=nothing + (advantage,) * len(thought.token_ids_L),
            behaviour_logprobs_T=nothing + thought.behaviour_logprobs_L,
            temperature=task.sampling.temperature,
        )
        for thought, advantage, weight in zip(
            thoughts_G, advantages_G, token_weights_G, strict=True
        )
    ]
