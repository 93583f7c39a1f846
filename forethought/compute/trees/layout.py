"""Trees packed into one row: where trunks and branches lie, and who sees whom.

    row        trunk of tree 0 | its branches by index | trunk of tree 1 | its branches | …
    sees       a trunk token: the trunk up to itself; a branch token: trunk[:index], and its branch up to
               itself; positions count as if each row stood alone

Design: no padding between trees, so a forward pass computes exactly the tokens that differ. Branches are
padded for their attention to themselves alone, which is small. The price is a model whose attention can be
replaced; others compute rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from forethought.compute.trees.tree import Branch, Tree
from forethought.compute.trees.visible_keys import VisibleKeys


@dataclass(frozen=True, slots=True)
class Trunk:
    """Tokens ``start`` to ``start + length`` of the packed row.

    Example:
        ``Trunk(start=0, length=512)``
    """

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class BranchGroup:
    """Branches that see the same ``trunk[:index]``: branch tokens ``start`` to ``end``, trunks left out.

    They follow each other in the packed row, from ``place`` on.

    Example:
        ``BranchGroup(Trunk(0, 512), index=300, start=0, end=128, place=512)``
    """

    trunk: Trunk
    index: int
    start: int
    end: int
    place: int


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """The places of packed trees. Shapes: S tokens of the row, Q branch tokens, R branches of up to T.

    ``branch_Q`` are the packed places of all branch tokens. ``padded_RT`` are their indices in Q, 0 where a
    branch is shorter than the longest, which ``is_token_RT`` tells; ``flat_Q`` is the inverse, into R * T.
    ``visible_keys`` say the same token by token, for kernels that compute the row as a whole.

    Example:
        ``layout_of(trees, device).position_ids``
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    trunks: tuple[Trunk, ...]
    groups: tuple[BranchGroup, ...]
    branch_Q: torch.Tensor
    padded_RT: torch.Tensor
    is_token_RT: torch.Tensor
    flat_Q: torch.Tensor
    visible_keys: VisibleKeys = field(repr=False)
    starts: dict[int, tuple[int, int, int]] = field(repr=False)
    """By row: the packed place of its trunk, of its branch, and the index at which it leaves the trunk."""

    def places(self, row: int, length: int, num_last: int) -> list[int]:
        """The packed places of the last tokens of a row of ``length`` tokens."""
        trunk, branch, index = self.starts[row]
        first = length - num_last
        return [
            *range(trunk + first, trunk + index),
            *range(branch + max(0, first - index), branch + length - index),
        ]


class _PackedRow:
    """A row under construction: its tokens, their positions, and the keys that each sees."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self._trunk_starts: list[int] = []
        self._trunk_ends: list[int] = []
        self._own_starts: list[int] = []

    def add_trunk(self, tree: Tree) -> Trunk:
        trunk = Trunk(len(self.ids), len(tree.trunk_ids))
        places = range(trunk.start, trunk.start + trunk.length)
        self._trunk_starts += [trunk.start] * trunk.length
        self._trunk_ends += (place + 1 for place in places)
        self._own_starts += places
        self.ids += tree.trunk_ids
        self.positions += range(trunk.length)
        return trunk

    def add_branch(self, trunk: Trunk, branch: Branch) -> None:
        length = len(branch.token_ids)
        self._trunk_starts += [trunk.start] * length
        self._trunk_ends += [trunk.start + branch.index] * length
        self._own_starts += [len(self.ids)] * length
        self.ids += branch.token_ids
        self.positions += range(branch.index, branch.index + length)

    def visible_keys(self, device: torch.device) -> VisibleKeys:
        spans = (self._trunk_starts, self._trunk_ends, self._own_starts)
        return VisibleKeys(*(torch.tensor(span, device=device) for span in spans))


def layout_of(trees: Sequence[Tree], device: torch.device) -> TreeLayout:
    """Pack trees into one row."""
    row = _PackedRow()
    trunks, groups = [], []
    starts: dict[int, tuple[int, int, int]] = {}
    branch_places: list[int] = []
    lengths: list[int] = []
    for tree in trees:
        trunk = row.add_trunk(tree)
        trunks.append(trunk)
        for index, branches in groupby(tree.branches, key=lambda branch: branch.index):
            first, place = len(branch_places), len(row.ids)
            for branch in branches:
                start = len(row.ids)
                starts[branch.row] = (trunk.start, start, index)
                row.add_branch(trunk, branch)
                branch_places += range(start, len(row.ids))
                lengths.append(len(branch.token_ids))
            if index and len(branch_places) > first:
                groups.append(BranchGroup(trunk, index, first, len(branch_places), place))
    padded, is_token = _padded([length for length in lengths if length])
    return TreeLayout(
        input_ids=torch.tensor([row.ids], device=device),
        position_ids=torch.tensor([row.positions], device=device),
        trunks=tuple(trunk for trunk in trunks if trunk.length),
        groups=tuple(groups),
        branch_Q=torch.tensor(branch_places, dtype=torch.long, device=device),
        padded_RT=padded.to(device),
        is_token_RT=is_token.to(device),
        flat_Q=is_token.flatten().nonzero()[:, 0].to(device),
        visible_keys=row.visible_keys(device),
        starts=starts,
    )


def _padded(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of consecutive branches' tokens, padded on the right with 0, and which are tokens."""
    offsets = torch.arange(max(lengths, default=0))
    lengths_R1 = torch.tensor(lengths, dtype=torch.long)[:, None]
    starts_R1 = lengths_R1.cumsum(0) - lengths_R1
    is_token = offsets < lengths_R1
    return torch.where(is_token, starts_R1 + offsets, 0), is_token
