"""What the tokens of packed trees see in one layer: the layout's masks, cut by the layer's own.

Design: what a layer leaves out (sliding windows, chunks) is asked of the mask function that the model
itself builds for it, at the tokens' positions, so that no architecture has to be known here. Masks exist
only where they leave something out. The price is that a window costs masks as large as the parts it cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from forethought.compute.tree_layout import BranchGroup, TreeLayout

MaskFunction = Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of transformers: batch, head, query and key, each an index, to whether it is seen."""


class TreeMask:
    """What a layer's tokens see: the layout, and the layer's own mask, as additive masks where it matters.

    A mask is None where every token of the part sees every key (or every earlier one, in causal parts).
    """

    def __init__(self, layout: TreeLayout, allows: MaskFunction, dtype: torch.dtype) -> None:
        self.layout = layout
        self._allows, self._dtype = allows, dtype
        positions = layout.position_ids[0]
        self.trunks = [
            self._causal(positions[trunk.start : trunk.start + trunk.length])
            for trunk in layout.trunks
        ]
        branch_positions = positions[layout.branch_Q]
        self.groups = [self._seen(branch_positions, group) for group in layout.groups]
        self.own = self._own(branch_positions[layout.padded_RT])

    def allowed(self) -> torch.Tensor:
        """Which token sees which, of the whole packed row. Shape [S, S]."""
        positions, layout = self.layout.position_ids[0], self.layout
        seen = torch.zeros(len(positions), len(positions), dtype=torch.bool)
        for trunk in layout.trunks:
            part = slice(trunk.start, trunk.start + trunk.length)
            seen[part, part] = True
        for group in layout.groups:
            of_trunk = slice(group.trunk.start, group.trunk.start + group.index)
            seen[layout.branch_Q[group.start : group.end], of_trunk] = True
        for own_T, is_token_T in zip(layout.padded_RT, layout.is_token_RT, strict=True):
            places = layout.branch_Q[own_T[is_token_T]]
            seen[places[:, None], places] = True
        seen &= positions[:, None] >= positions
        return seen & self._allow(positions[:, None], positions[None])

    def _allow(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros((), dtype=torch.long, device=queries.device)
        return self._allows(zero, zero, queries, keys)

    def _causal(self, positions: torch.Tensor) -> torch.Tensor | None:
        allowed = self._allow(positions[:, None], positions[None])
        causal = torch.ones_like(allowed).tril()
        return None if torch.equal(allowed, causal) else self._additive(allowed)

    def _seen(self, positions: torch.Tensor, group: BranchGroup) -> torch.Tensor | None:
        keys = torch.arange(group.index, device=positions.device)
        allowed = self._allow(positions[group.start : group.end, None], keys[None])
        return None if bool(allowed.all()) else self._additive(allowed)

    def _own(self, positions_RT: torch.Tensor) -> torch.Tensor | None:
        num = positions_RT.shape[1]
        offsets = torch.arange(num, device=positions_RT.device)
        causal = offsets[:, None] >= offsets
        allowed = self._allow(positions_RT[:, :, None], positions_RT[:, None]) & causal
        is_token = self.layout.is_token_RT
        outside = ~(is_token[:, :, None] & is_token[:, None])
        if bool((allowed | outside | ~causal).all()):
            return None
        return self._additive(allowed | (outside & causal))[:, None]

    def _additive(self, allowed: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(allowed.shape, dtype=self._dtype, device=allowed.device)
        return zeros.masked_fill(~allowed, float("-inf"))
