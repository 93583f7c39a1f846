"""Thoughts as the learner's input: branches of a trunk, or written into their documents.

    bridge | thought (surrogate at the sampling temperature) | close | target (next-token loss)

Design: a target's loss shares the row of its thought, which saves a separate forward pass. If one token
would need both losses, which differ in temperature, or if a sampled prediction takes the target's place,
the thought gets a second branch for next-token loss only.

Chain-of-thought CPT trains on ``trunk[:i] + bridge + thought + close + trunk[i:]``: one document per
thought, so that no thought is in the context of another. The price is one pass over a trunk per thought.
The text keeps its usual weights, the thought gets the objective's weight, and the markers get none (nothing
in the text predicts them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forethought.types import Document, Thought
from trainer.batch.thought_tree import Branch
from trainer.batch.training_group import TrainingGroup


@dataclass(frozen=True, slots=True)
class ThoughtWeights:
    """One thought's weights in the loss of its batch.

    ``weight`` applies to each sampled token in the surrogate, ``thought_nll`` to the mean next-token loss
    of the thought, ``answer_nll`` to -log p(target | context, thought).

    Example:
        ``ThoughtWeights(weight=0.01, advantage=1.2, thought_nll=0.0, answer_nll=0.005)``
    """

    weight: float
    advantage: float
    thought_nll: float = 0.0
    answer_nll: float = 0.0


def branches_of(group: TrainingGroup, thought: Thought, weights: ThoughtWeights) -> list[Branch]:
    """Zero, one or two branches for a thought."""
    imitates = bool(weights.thought_nll or weights.answer_nll)
    if not weights.weight:
        return [_imitation(group, thought, weights)] if imitates else []
    if imitates and (weights.thought_nll or thought.num_prediction_tokens):
        return [_reinforcement(group, thought, weights), _imitation(group, thought, weights)]
    return [_reinforcement(group, thought, weights, _answer_ids(group, thought, weights))]


def _reinforcement(
    group: TrainingGroup,
    thought: Thought,
    weights: ThoughtWeights,
    answer_ids: tuple[int, ...] = (),
) -> Branch:
    bridge_ids, num_tokens = group.task.prompting.bridge_ids, len(thought.token_ids_L)
    before, after = (0.0,) * len(bridge_ids), (0.0,) * len(answer_ids)
    nll_weights = before + (0.0,) * num_tokens + _answer_weights(group, answer_ids, weights)
    return Branch(
        index=group.index,
        token_ids_T=bridge_ids + thought.token_ids_L + answer_ids,
        weights_T=before + (weights.weight,) * num_tokens + after,
        advantages_T=before + (weights.advantage,) * num_tokens + after,
        behaviour_logprobs_T=before + thought.behaviour_logprobs_L + after,
        temperature=group.task.sampling.temperature,
        nll_weights_T=nll_weights if answer_ids else (),
    )


def _imitation(group: TrainingGroup, thought: Thought, weights: ThoughtWeights) -> Branch:
    bridge_ids, thought_ids = group.task.prompting.bridge_ids, thought.thought_ids
    answer_ids = _answer_ids(group, thought, weights)
    nothing = (0.0,) * (len(bridge_ids) + len(thought_ids) + len(answer_ids))
    of_thought = (weights.thought_nll / len(thought_ids),) * len(thought_ids)
    nll_weights = (0.0,) * len(bridge_ids) + of_thought
    return Branch(
        index=group.index,
        token_ids_T=bridge_ids + thought_ids + answer_ids,
        weights_T=nothing,
        advantages_T=nothing,
        behaviour_logprobs_T=nothing,
        temperature=1.0,
        nll_weights_T=nll_weights + _answer_weights(group, answer_ids, weights),
    )


def _answer_ids(group: TrainingGroup, thought: Thought, weights: ThoughtWeights) -> tuple[int, ...]:
    """The rest of the close, then the target; empty if the answer has no weight."""
    if not weights.answer_nll:
        return ()
    return group.close_ids(thought) + group.task.positions_K[group.k].target_ids_H


def _answer_weights(
    group: TrainingGroup, answer_ids: tuple[int, ...], weights: ThoughtWeights
) -> tuple[float, ...]:
    """Only the target has a weight: a forced close gets no gradient."""
    num_targets = min(len(answer_ids), len(group.task.positions_K[group.k].target_ids_H))
    return (0.0,) * (len(answer_ids) - num_targets) + (weights.answer_nll,) * num_targets


def written_documents(
    groups: Sequence[TrainingGroup], trained_BG: Sequence[Sequence[bool]], thought_weight: float
) -> list[Document]:
    """One document per trained thought, weighted for next-token loss."""
    return [
        _written(group, thought, thought_weight)
        for group, trained_G in zip(groups, trained_BG, strict=True)
        for thought, is_trained in zip(group.thoughts_G, trained_G, strict=True)
        if is_trained
    ]


def _written(group: TrainingGroup, thought: Thought, thought_weight: float) -> Document:
    document, index = group.task.document, group.index
    bridge_ids, close_ids = group.task.prompting.bridge_ids, group.close_ids(thought)
    inserted_ids = bridge_ids + thought.thought_ids + close_ids
    trunk_weights_N = document.nll_weights_N or (1.0,) * len(document.token_ids_N)
    weights = (0.0,) * len(bridge_ids) + (thought_weight,) * len(thought.thought_ids)
    weights += (0.0,) * len(close_ids)
    return Document(
        document_id=document.document_id,
        source=document.source,
        token_ids_N=document.token_ids_N[:index] + inserted_ids + document.token_ids_N[index:],
        nll_weights_N=trunk_weights_N[:index] + weights + trunk_weights_N[index:],
    )
