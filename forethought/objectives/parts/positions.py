"""Position selection: pure functions of a document and a random generator.

Index i means: the context is ``trunk[:i]``, the target starts at token i. At least one context token
is required, and the whole target must lie inside the document. The entropy of a position is that of
predicting its first target token, if the corpus is annotated with entropies (:mod:`forethought.corpus`).
"""

from __future__ import annotations

import math
from random import Random

from forethought.errors import InvalidInput
from forethought.types import Document, Position


def uniform(
    document: Document, num_positions: int, target_tokens: int, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` distinct positions drawn uniformly (fewer in a short document)."""
    return drawn(document, valid(document, target_tokens), num_positions, target_tokens, rng)


def every(document: Document, target_tokens: int) -> tuple[Position, ...]:
    """All positions of the document."""
    return at(document, valid(document, target_tokens), target_tokens)


def marked(
    document: Document, num_positions: int, target_tokens: int, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` of the positions that the corpus marks."""
    marks = set(document.marks)
    indices = [index for index in valid(document, target_tokens) if index in marks]
    return drawn(document, indices, num_positions, target_tokens, rng)


def uncertain(
    document: Document, num_positions: int, target_tokens: int, min_entropy: float, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` of those whose entropy is at least ``min_entropy`` nats (RPT, section 3.3).

    Raises:
        InvalidInput: the document has no entropies.
    """
    entropies_N = _entropies(document)
    indices = [i for i in valid(document, target_tokens) if entropies_N[i] >= min_entropy]
    return drawn(document, indices, num_positions, target_tokens, rng)


def most_uncertain(
    document: Document, num_positions: int, target_tokens: int, share: float, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` of the ``share`` (rounded up) of the document's positions with highest entropy.

    The share is per document, because the feed sees one at a time; ties go to the earlier position.

    Raises:
        InvalidInput: the document has no entropies.
    """
    entropies_N = _entropies(document)
    indices = sorted(valid(document, target_tokens), key=lambda i: (-entropies_N[i], i))
    kept = sorted(indices[: math.ceil(share * len(indices))])
    return drawn(document, kept, num_positions, target_tokens, rng)


def valid(document: Document, target_tokens: int) -> list[int]:
    """Every index with a context before it and a whole target after it."""
    return list(range(1, len(document.token_ids_N) - target_tokens + 1))


def drawn(
    document: Document, indices: list[int], num_positions: int, target_tokens: int, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` random ones of the given indices (or all, if fewer), ascending."""
    chosen = rng.sample(indices, min(num_positions, len(indices)))
    return at(document, sorted(chosen), target_tokens)


def at(document: Document, indices: list[int], target_tokens: int) -> tuple[Position, ...]:
    """Positions at the given indices."""
    ids = document.token_ids_N
    return tuple(Position(index, ids[index : index + target_tokens]) for index in indices)


def _entropies(document: Document) -> tuple[float, ...]:
    if len(document.entropies_N) != len(document.token_ids_N):
        raise InvalidInput(
            f"document {document.document_id} has {len(document.entropies_N)} entropies for "
            f"{len(document.token_ids_N)} tokens; expected one each: annotate the corpus with "
            "`forethought curate CORPUS --model PROXY --out DIR` and train on DIR"
        )
    return document.entropies_N
