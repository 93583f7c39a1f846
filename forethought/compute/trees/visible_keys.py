"""Which keys each token of packed trees sees: two spans of the packed row, of its trunk and up to itself.

    sees(q, k) = trunk_start[q] <= k < trunk_end[q]  or  own_start[q] <= k <= q

Design: trunks and branches are contiguous in the packed row, and what layers leave out of them (windows,
chunks) are the keys of the lowest positions. So three numbers a token say it all, to any kernel, without a
mask of S x S. The price: a layer that leaves out a key between two that it sees is refused, and to know
whether one does costs comparisons by the square of the longest row, unless it is plainly causal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

MaskFunction = Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of transformers: batch, head, query and key, each an index, to whether it is seen."""

_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class VisibleKeys:
    """The spans of keys that each of S packed tokens sees. Shape [S] each.

    Example:
        ``layout.visible_keys.within(layout.position_ids[0], mask_function)``
    """

    trunk_start_S: torch.Tensor
    trunk_end_S: torch.Tensor
    own_start_S: torch.Tensor

    def sees(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Whether queries see keys; both are places in the packed row, and broadcast."""
        of_trunk = (keys >= self.trunk_start_S[queries]) & (keys < self.trunk_end_S[queries])
        return of_trunk | ((keys >= self.own_start_S[queries]) & (keys <= queries))

    def within(self, positions_S: torch.Tensor, allows: MaskFunction) -> VisibleKeys:
        """What a layer with this mask function leaves of the spans.

        Raises:
            TypeError: the layer leaves out a key between two that it sees, or lets a token see later ones.
        """
        is_causal: bool = allows is causal_mask_function  # type: ignore[comparison-overlap]
        if is_causal or not len(positions_S):
            return self
        first_S = _first_seen(int(positions_S.max()) + 1, allows, positions_S.device)[positions_S]
        left_out_S = first_S - positions_S[self.own_start_S]
        return VisibleKeys(
            self.trunk_start_S + first_S,
            self.trunk_end_S,
            self.own_start_S + left_out_S.clamp_min(0),
        )


def _first_seen(length: int, allows: MaskFunction, device: torch.device) -> torch.Tensor:
    """The first position that a layer lets each position see; it sees all from there to itself. [length]"""
    positions = torch.arange(length, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    counts = []
    for start in range(0, length, _QUERIES_AT_ONCE):
        queries = positions[start : start + _QUERIES_AT_ONCE, None]
        seen = allows(zero, zero, queries, positions)
        counts.append(seen.sum(1))
        is_span = (positions > queries - counts[-1][:, None]) & (positions <= queries)
        if not torch.equal(seen, is_span):
            raise TypeError("a layer of this model does not see a span of the latest tokens")
    return positions + 1 - torch.cat(counts)
