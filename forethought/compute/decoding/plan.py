"""Which groups of rows share a trunk while decoding, and what a batch of them keeps in memory.

    tokens kept = trunks + rows * (longest tail + new tokens)

A group's prefix is the beginning of a trunk and a tail of its own: all positions of a document have one
trunk of the document, and tails of the few tokens that ask for a thought.

Design: trunks are found in the token ids, every prefix counted twice so that a trunk reaches to the end of
the longest. A tail is repeated for every row of its group; where that would keep more tokens than a trunk
of the group's own, it has one. Short trunks are kept in batches, padded to the longest by a third at most.
The price is that what tails have in common is not shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forethought.compute.decoding.blocks import RowPlace
from forethought.compute.decoding.decoder import Group, TokenIds
from forethought.compute.trees.tree import Branch, Tree, trees_of

_BATCHED_ROW_KEYS = 2048  # of a trunk that is batched with others: rows times length
_BATCH_TOKENS = 4096  # trunk tokens of a batch of several
_SIMILAR = 0.75  # of trunks in a batch: lengths and numbers of rows


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Trees whose branches are the tails of groups, in batches of trunks that are kept as one tensor.

    Example:
        ``plan_of([Group((1, 5, 39), 8, 32), Group((1, 5, 6, 7, 39), 8, 32)]).num_tokens``
    """

    groups: tuple[Group, ...]
    batches: tuple[tuple[Tree, ...], ...]

    @property
    def longest_tail(self) -> int:
        """In tokens."""
        return max(len(branch.token_ids) for branch in self._branches)

    @property
    def num_tokens(self) -> int:
        """The tokens whose keys and values are kept at once, at most."""
        trunks = sum(len(batch) * num_keys(batch) for batch in self.batches)
        num_rows = sum(group.num_rows for group in self.groups)
        new_tokens = max(group.max_tokens for group in self.groups)
        return trunks + num_rows * (self.longest_tail + new_tokens)

    @property
    def owners_R(self) -> list[int]:
        """The group of every row, by batch, trunk and index."""
        return [
            branch.row for branch in self._branches for _ in range(self.groups[branch.row].num_rows)
        ]

    @property
    def places_R(self) -> list[RowPlace]:
        """Where every row leaves its trunk."""
        return [
            RowPlace(b, t, branch.index)
            for b, batch in enumerate(self.batches)
            for t, tree in enumerate(batch)
            for branch in tree.branches
            for _ in range(self.groups[branch.row].num_rows)
        ]

    @property
    def _branches(self) -> list[Branch]:
        return [branch for batch in self.batches for tree in batch for branch in tree.branches]


def num_keys(batch: Sequence[Tree]) -> int:
    """The length to which a batch's trunks are padded."""
    return max(len(tree.trunk_ids) for tree in batch)


def plan_of(groups: Sequence[Group]) -> DecodePlan:
    """Share what the groups' prefixes have in common."""
    return DecodePlan(tuple(groups), tuple(map(tuple, _batches(groups, _trees(groups)))))


def _trees(groups: Sequence[Group]) -> list[Tree]:
    prefixes = [group.prefix_ids for group in groups]
    shared: list[Tree] = []
    lone: dict[TokenIds, list[Branch]] = {}
    for tree in trees_of(prefixes * 2):
        branches = []
        for branch in tree.branches:
            if branch.row >= len(groups):
                continue
            if groups[branch.row].num_rows * len(branch.token_ids) <= branch.index:
                branches.append(branch)
            else:
                prefix = prefixes[branch.row]
                lone.setdefault(prefix, []).append(Branch(branch.row, len(prefix), ()))
        if branches:
            shared.append(Tree(tree.trunk_ids, tuple(branches)))
    return shared + [Tree(prefix, tuple(branches)) for prefix, branches in lone.items()]


def _batches(groups: Sequence[Group], trees: Sequence[Tree]) -> list[list[Tree]]:
    """Trunks in batches: similar small ones together, any other by itself."""
    rows = {tree: sum(groups[branch.row].num_rows for branch in tree.branches) for tree in trees}
    batches: list[list[Tree]] = []
    for tree in sorted(trees, key=lambda one: (rows[one], len(one.trunk_ids)), reverse=True):
        length, most = len(tree.trunk_ids), len(batches[-1][0].trunk_ids) if batches else 0
        if (
            batches
            and rows[batches[-1][0]] * most <= _BATCHED_ROW_KEYS
            and (len(batches[-1]) + 1) * most <= _BATCH_TOKENS
            and rows[tree] >= _SIMILAR * rows[batches[-1][0]]
            and _SIMILAR * most <= length <= most
        ):
            batches[-1].append(tree)
        else:
            batches.append([tree])
    return batches
