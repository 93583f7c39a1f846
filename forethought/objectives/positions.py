"""Selecting positions: pure functions of a document and a random generator.

An index i means: the context is ``trunk[:i]``, the target starts at token i. At least one context token
is needed, and the whole target must lie inside the document.
"""

from __future__ import annotations

from random import Random

from forethought.types import Document, Position


def uniform(
    document: Document, num_positions: int, target_tokens: int, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` distinct positions drawn uniformly (fewer in a short document)."""
    valid = range(1, len(document.token_ids_N) - target_tokens + 1)
    chosen = rng.sample(valid, min(num_positions, len(valid)))
    return at(document, sorted(chosen), target_tokens)


def marked(
    document: Document, num_positions: int, target_tokens: int, rng: Random
) -> tuple[Position, ...]:
    """``num_positions`` of the positions that the corpus itself marked."""
    last = len(document.token_ids_N) - target_tokens
    valid = sorted({mark for mark in document.marks if 1 <= mark <= last})
    chosen = rng.sample(valid, min(num_positions, len(valid)))
    return at(document, sorted(chosen), target_tokens)


def at(document: Document, indices: list[int], target_tokens: int) -> tuple[Position, ...]:
    """Positions at the given indices."""
    ids = document.token_ids_N
    return tuple(Position(index, ids[index : index + target_tokens]) for index in indices)
