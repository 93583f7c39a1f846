"""Rows that begin alike, as trees: a trunk that is computed once, and branches that leave it.

    rows    a b c d | x          trunk     a b c d e f v
            a b c d e f | v      branches  (4, x)  (6, w)  (7, nothing)
            a b c d e f | w

Design: sharing is found in the token ids alone, so all rows that are computed (all thoughts of a position,
all positions of a document, requests of strangers) share what they have in common, and nothing has to be
declared. A tree has two levels, because attention to a trunk's beginning is one plain product; what
branches share beyond the trunk is repeated. The price is a sort of all rows, and about a millisecond per
thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """Row ``row`` is ``trunk[:index] + token_ids``.

    Example:
        ``Branch(row=3, index=4, token_ids=(39, 7))``
    """

    row: int
    index: int
    token_ids: TokenIds


@dataclass(frozen=True, slots=True)
class Tree:
    """A trunk and its branches, in the order of their indices.

    Example:
        ``Tree((5, 6, 7), (Branch(0, 2, (9,)), Branch(1, 3, ())))``
    """

    trunk_ids: TokenIds
    branches: tuple[Branch, ...]

    @property
    def num_tokens(self) -> int:
        """The tokens to compute: the trunk once, and every branch."""
        return len(self.trunk_ids) + sum(len(branch.token_ids) for branch in self.branches)

    def pieces(self, max_tokens: int) -> Iterator[Tree]:
        """The tree cut between branches into trees of at most ``max_tokens``, or of one branch."""
        start, num_tokens = 0, 0
        for end, branch in enumerate(self.branches):
            num_tokens += len(branch.token_ids)
            if end > start and branch.index + num_tokens > max_tokens:
                yield self._piece(start, end)
                start, num_tokens = end, len(branch.token_ids)
        yield self._piece(start, len(self.branches))

    def _piece(self, start: int, end: int) -> Tree:
        branches = self.branches[start:end]
        return Tree(self.trunk_ids[: branches[-1].index], branches)


def trees_of(rows: Sequence[TokenIds]) -> list[Tree]:
    """All rows as trees. A row joins one if the trunk covers at least half of what it shares with any."""
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    trees: list[Tree] = []
    for related in _related([rows[i] for i in order], order):
        trees += _trees(rows, related)
    return trees


def _related(rows: Sequence[TokenIds], order: Sequence[int]) -> Iterator[list[int]]:
    """Cut sorted rows where neighbours share less than half of what each shares on its other side."""
    shared = _shared_with_next(rows)
    most = np.maximum(np.append(shared, 0), np.insert(shared, 0, 0))
    start = 0
    for i, num_shared in enumerate(shared):
        if 2 * num_shared < min(most[i], most[i + 1]) or num_shared == 0:
            yield list(order[start : i + 1])
            start = i + 1
    if order:
        yield list(order[start:])


def _trees(rows: Sequence[TokenIds], members: list[int]) -> Iterator[Tree]:
    """The trees of sorted, related rows: the trunk that covers most, then those of the rows it leaves."""
    while members:
        shared = _shared_with_next([rows[i] for i in members])
        most = np.maximum(np.append(shared, 0), np.insert(shared, 0, 0))
        covered = [_shared_with(shared, i) for i in range(len(members))]
        best = int(np.argmax([of_row.sum() for of_row in covered]))
        trunk_ids = rows[members[best]]
        indices = covered[best]
        indices[best] = len(trunk_ids)
        joins = 2 * indices >= most
        yield _tree(rows, trunk_ids, [(int(indices[i]), members[i]) for i in np.flatnonzero(joins)])
        members = [members[i] for i in np.flatnonzero(~joins)]


def _tree(rows: Sequence[TokenIds], trunk_ids: TokenIds, joined: list[tuple[int, int]]) -> Tree:
    branches = (Branch(row, index, rows[row][index:]) for index, row in sorted(joined))
    return Tree(trunk_ids, tuple(branches))


def _shared_with(shared: np.ndarray, row: int) -> np.ndarray:
    """The beginning that one of the sorted rows shares with each of them; 0 for itself."""
    before = np.minimum.accumulate(shared[:row][::-1])[::-1]
    after = np.minimum.accumulate(shared[row:])
    return np.concatenate([before, [0], after])


def _shared_with_next(rows: Sequence[TokenIds]) -> np.ndarray:
    """The length of the beginning that each sorted row shares with its successor. Shape [rows - 1]."""
    lengths = [_num_shared(a, b) for a, b in pairwise(rows)]
    return np.array(lengths, dtype=np.int64)


def _num_shared(a: TokenIds, b: TokenIds) -> int:
    """By bisection: comparing slices is a hundred times faster than comparing tokens here."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
