"""Thought trees: the learner's input, independent of the objective that produced them.

A tree is one trunk with branches that leave it at some index; everything to be trained on is in
per-token arrays: a surrogate weight with its advantage and behaviour log-prob, or a next-token weight.
Next-token prediction, SFT, best-of-G cloning and reinforcement differ only in these numbers.

Design: trees hold the trunk once. Batching makes a row of every branch and finds anew what rows share,
because trees of one document share with each other too; whether it is computed once depends on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forethought.types import Document


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that follow ``trunk[:index]``; each array has one entry per token.

    ``behaviour_logprobs_T`` are at ``temperature`` and ignored where ``weights_T`` is 0. A token with a
    next-token weight is trained at temperature 1 and has no surrogate weight.

    Example:
        ``Branch(10, (39, 4, 40), (0.0, 0.5, 0.5), (0.0, 1.2, 1.2), (0.0, -0.7, -0.1), 1.0)``
    """

    index: int
    token_ids_T: tuple[int, ...]
    weights_T: tuple[float, ...]
    advantages_T: tuple[float, ...]
    behaviour_logprobs_T: tuple[float, ...]
    temperature: float
    nll_weights_T: tuple[float, ...] = ()  # empty: none


@dataclass(frozen=True, slots=True)
class ThoughtTree:
    """A trunk, the next-token weights of its tokens (empty: none), and the branches that leave it.

    ``head_ids`` precede the trunk in every row.

    Example:
        ``ThoughtTree(head_ids=(), trunk_ids_N=(1, 5, 9), nll_weights_N=(0.0, 0.5, 0.5))``
    """

    head_ids: tuple[int, ...]
    trunk_ids_N: tuple[int, ...]
    nll_weights_N: tuple[float, ...] = ()
    branches: tuple[Branch, ...] = field(default=())


def trees_of_documents(
    documents: Sequence[Document], bos_ids: tuple[int, ...] = ()
) -> list[ThoughtTree]:
    """Trees for next-token loss on documents, averaged over the tokens of the whole batch.

    Each follows ``bos_ids``, which is not predicted; without it, the first token of a document is not
    predicted either and has weight 0.
    """
    weights = [_document_weights(document, bool(bos_ids)) for document in documents]
    total = sum(map(sum, weights)) or 1.0
    return [
        ThoughtTree(bos_ids, document.token_ids_N, tuple(weight / total for weight in weights_N))
        for document, weights_N in zip(documents, weights, strict=True)
    ]


def _document_weights(document: Document, is_first_predicted: bool) -> list[float]:
    given = document.nll_weights_N or (1.0,) * len(document.token_ids_N)
    return [given[0] if is_first_predicted else 0.0, *given[1:]]
