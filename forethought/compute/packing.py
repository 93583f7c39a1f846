"""Rows as the inputs of forward passes, in the form that the model allows.

    trees     [1, S]  what rows share is computed once; no padding
    cached    [1, S]  the same places, computed by several passes with a cache
    padded    [B, T]  padded on the right, without a mask: no token of a causal model sees what follows it
    alone     [1, T]

Design: all forms give the hidden states of the same predictions in the same order, so that nothing after
them knows the form. Padding on the right needs no mask, so recurrent layers and biases by distance are
exact too. The price: predictions are gathered by index where a slice would do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from forethought.compute.forms import Forms
from forethought.compute.rows import token_budget_batches
from forethought.compute.trees.layout import TreeLayout, layout_of
from forethought.compute.trees.tree import Tree, trees_of


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, of which the last ``num_tail`` are to be predicted from what precedes each.

    Example:
        ``Row((1, 5, 9, 42), num_tail=1)``
    """

    token_ids: tuple[int, ...]
    num_tail: int

    @property
    def input_ids(self) -> tuple[int, ...]:
        """All but the last token, which is predicted and never read."""
        return self.token_ids[:-1]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The tokens to be predicted."""
        return self.token_ids[len(self.token_ids) - self.num_tail :]


@dataclass(frozen=True, slots=True)
class Pack:
    """The inputs of one forward pass. M predictions, those of ``rows`` in order, are made at ``places_M``,
    indices into the flattened input; ``num_tokens`` are computed, padding left out.

    Example:
        ``next(packs_of(rows, Forms("trees", "trees"), 8192, device)).rows``
    """

    rows: tuple[int, ...]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    places_M: torch.Tensor
    num_tokens: int
    layout: TreeLayout | None = None
    is_cached: bool = False


def packs_of(
    rows: Sequence[Row], forms: Forms, max_tokens: int, device: torch.device
) -> Iterator[Pack]:
    """All rows in packs of at most ``max_tokens`` tokens, padding included.

    A row that is longer by itself has a pack of its own; a tree that is larger is cut between branches.
    """
    limit = 0 if forms.rows == "alone" else forms.limit_tokens
    together = [i for i, row in enumerate(rows) if len(row.token_ids) <= limit]
    if forms.shares:
        for pack in _packed(rows, together, max_tokens, device):
            yield replace(pack, is_cached=forms.rows == "cached")
    else:
        lengths = [len(rows[i].token_ids) for i in together]
        for batch in token_budget_batches(lengths, max_tokens):
            yield _padded(rows, [together[i] for i in batch], device)
    for i, row in enumerate(rows):
        if len(row.token_ids) > limit:
            yield _padded(rows, [i], device)


def _packed(
    rows: Sequence[Row], members: Sequence[int], max_tokens: int, device: torch.device
) -> Iterator[Pack]:
    trees = trees_of([rows[i].input_ids for i in members])
    pieces = (piece for tree in trees for piece in tree.pieces(max_tokens))
    packed: list[Tree] = []
    num_tokens = 0
    for piece in pieces:
        if packed and num_tokens + piece.num_tokens > max_tokens:
            yield _pack(rows, members, packed, device)
            packed, num_tokens = [], 0
        packed.append(piece)
        num_tokens += piece.num_tokens
    if packed:
        yield _pack(rows, members, packed, device)


def _pack(
    rows: Sequence[Row], members: Sequence[int], trees: Sequence[Tree], device: torch.device
) -> Pack:
    layout = layout_of(trees, device)
    own = [branch.row for tree in trees for branch in tree.branches]
    places = [
        place
        for i in own
        for place in layout.places(i, len(rows[members[i]].input_ids), rows[members[i]].num_tail)
    ]
    return Pack(
        rows=tuple(members[i] for i in own),
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        places_M=torch.tensor(places, device=device),
        num_tokens=layout.input_ids.shape[1],
        layout=layout,
    )


def _padded(rows: Sequence[Row], batch: Sequence[int], device: torch.device) -> Pack:
    lengths = [len(rows[i].input_ids) for i in batch]
    width = max(lengths)
    padded = [
        rows[i].input_ids + (0,) * (width - length)
        for i, length in zip(batch, lengths, strict=True)
    ]
    places = [
        b * width + place
        for b, (i, length) in enumerate(zip(batch, lengths, strict=True))
        for place in range(length - rows[i].num_tail, length)
    ]
    return Pack(
        rows=tuple(batch),
        input_ids=torch.tensor(padded, device=device),
        position_ids=torch.arange(width, device=device).expand(len(batch), -1),
        places_M=torch.tensor(places, device=device),
        num_tokens=sum(lengths),
    )
