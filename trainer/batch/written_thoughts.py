"""Thoughts written into the documents they are about: what chain-of-thought CPT learns from.

    trunk[:i] + bridge + thought + close + trunk[i:]

Design: one document per thought, so that no thought stands in the context of another; the price is that
a trunk is learned once for every thought about it. Its text weighs what it always weighs, the thought what
``thought_weight`` says, the markers before it nothing (nothing in the text predicts them).
"""

from __future__ import annotations

from collections.abc import Sequence

from forethought.types import Document, Thought
from trainer.batch.learned_group import LearnedGroup


def written_documents(
    groups: Sequence[LearnedGroup], learned_BG: Sequence[Sequence[bool]], thought_weight: float
) -> list[Document]:
    """One document per learned thought, weighted for next-token loss."""
    return [
        _written(group, thought, thought_weight)
        for group, learned_G in zip(groups, learned_BG, strict=True)
        for thought, is_learned in zip(group.thoughts_G, learned_G, strict=True)
        if is_learned
    ]


def _written(group: LearnedGroup, thought: Thought, thought_weight: float) -> Document:
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
