"""What the tokens of packed trees see in one layer: the layout's masks, cut by the layer's own.

Design: what a layer leaves out (sliding windows, chunks) is asked of the mask function that the model
itself builds for it, at the tokens' positions, so that no architecture has to be known here. Each kernel's
form of it is made when first asked for. In parts, for the CPU, masks exist only where they leave something
out; the price is that a window costs masks as large as the parts it cuts.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch.nn.attention.flex_attention import BlockMask

from forethought.compute.trees.block_mask import block_mask_of
from forethought.compute.trees.layout import BranchGroup, TreeLayout
from forethought.compute.trees.visible_keys import MaskFunction, VisibleKeys


class TreeMask:
    """What a layer's tokens see: the layout, and the layer's own mask.

    In parts, a mask is None where every token sees every key (or every earlier one, in causal parts), else
    additive.
    """

    def __init__(self, layout: TreeLayout, allows: MaskFunction, dtype: torch.dtype) -> None:
        self.layout = layout
        self._allows, self._dtype = allows, dtype

    def __getitem__(self, index: tuple[slice, ...]) -> TreeMask:
        """Itself, for models that cut masks to the queries they keep (Gemma 4), which here are all.

        Raises:
            TypeError: it would be a part.
        """
        if any(part not in (slice(None), slice(0, None)) for part in index):
            raise TypeError("this model cuts its masks")
        return self

    @cached_property
    def visible_keys(self) -> VisibleKeys:
        """Token by token.

        Raises:
            TypeError: the layer's mask is not one of the latest tokens.
        """
        return self.layout.visible_keys.within(self.layout.position_ids[0], self._allows)

    @cached_property
    def blocks(self) -> BlockMask:
        """Block by block. It raises as :attr:`visible_keys`."""
        return block_mask_of(self.visible_keys)

    @cached_property
    def trunks(self) -> list[torch.Tensor | None]:
        """In parts: each trunk to itself."""
        positions = self.layout.position_ids[0]
        return [
            self._causal(positions[trunk.start : trunk.start + trunk.length])
            for trunk in self.layout.trunks
        ]

    @cached_property
    def groups(self) -> list[torch.Tensor | None]:
        """In parts: each group of branches to its trunk."""
        return [self._seen(self._branch_positions, group) for group in self.layout.groups]

    @cached_property
    def own(self) -> torch.Tensor | None:
        """In parts: all branches to themselves. Shape [R, 1, T, T]."""
        return self._own(self._branch_positions[self.layout.padded_RT])

    @property
    def _branch_positions(self) -> torch.Tensor:
        return self.layout.position_ids[0][self.layout.branch_Q]

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
