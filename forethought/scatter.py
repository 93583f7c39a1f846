"""Computing a batch in one call, and putting the results back where they belong.

Design: one invalid item must not fail its batch, and items of several groups share one forward pass. Both
are the same bookkeeping everywhere, so it is written once; the price is a function in place of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E")


def compute_valid(
    items: Sequence[T], errors: Sequence[E | None], compute: Callable[[list[T]], Iterable[R]]
) -> list[R | E]:
    """Results of the items without an error, computed together; every error stays in its place.

    Example:
        ``compute_valid([1, 2, 3], [None, "odd", None], lambda ns: [n * n for n in ns]) == [1, "odd", 9]``
    """
    valid = [item for item, error in zip(items, errors, strict=True) if error is None]
    results = iter(compute(valid))
    return [next(results) if error is None else error for error in errors]


def compute_flat(
    groups: Sequence[Sequence[T]], compute: Callable[[list[T]], Iterable[R]]
) -> list[list[R]]:
    """Results of all groups' items, computed together, in the groups' ragged shape.

    Example:
        ``compute_flat([[1, 2], [], [3]], lambda ns: [n * n for n in ns]) == [[1, 4], [], [9]]``
    """
    results = iter(compute([item for group in groups for item in group]))
    return [[next(results) for _ in group] for group in groups]
