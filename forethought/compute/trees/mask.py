"""What the tokens of packed trees see in one layer: the layout's masks, cut by the layer's own.

Design: what a layer leaves out (sliding windows, chunks) is asked of the mask function that the model
itself builds for it, at the tokens' positions, so that no architecture has to be known here. It is kept
token by token (:mod:`forethought.compute.trees.visible_keys`), and each kernel's form of it is made when
first asked for. In parts, for the CPU, masks exist only where a layer leaves something out; the price is
that a window costs masks as large as the parts it cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch.nn.attention.flex_attention import BlockMask

from forethought.compute.trees.block_mask import block_mask_of
from forethought.compute.trees.layout import TreeLayout
from forethought.compute.trees.visible_keys import MaskFunction, VisibleKeys


class TreeMask:
    """What a layer's tokens see: the layout, and the layer's own mask.

    In parts, a mask is None where every token sees every key (or every earlier one, in causal parts), else
    additive. Every property raises ``TypeError`` if the layer's mask is not one of the latest tokens.
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
        """Token by token."""
        return self.layout.visible_keys.within(self.layout.position_ids[0], self._allows)

    @cached_property
    def blocks(self) -> BlockMask:
        """Block by block."""
        return block_mask_of(self.visible_keys)

    @cached_property
    def trunks(self) -> list[torch.Tensor | None]:
        """In parts: each trunk to itself."""
        spans = [(trunk.start, trunk.start + trunk.length) for trunk in self.layout.trunks]
        return [self._part(places, places) for places in self._ranges(spans)]

    @cached_property
    def groups(self) -> list[torch.Tensor | None]:
        """In parts: each group of branches to its trunk."""
        groups = self.layout.groups
        seen = self._ranges([(g.trunk.start, g.trunk.start + g.index) for g in groups])
        return [
            self._part(self.layout.branch_Q[group.start : group.end], keys)
            for group, keys in zip(groups, seen, strict=True)
        ]

    @cached_property
    def own(self) -> torch.Tensor | None:
        """In parts: all branches to themselves. Shape [R, 1, T, T]."""
        layout = self.layout
        if torch.equal(self.visible_keys.own_start_S, layout.visible_keys.own_start_S):
            return None
        places_RT, is_token_RT = layout.branch_Q[layout.padded_RT], layout.is_token_RT
        seen = self.visible_keys.sees(places_RT[:, :, None], places_RT[:, None])
        padding = torch.ones_like(seen).tril() & ~is_token_RT[:, :, None]  # it has to see something
        return self._additive((seen & is_token_RT[:, None]) | padding)[:, None]

    def _ranges(self, spans: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        return [torch.arange(*span, device=self.layout.input_ids.device) for span in spans]

    def _part(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | None:
        """What queries see of the keys of their trunk; all are places in the packed row."""
        whole = self.layout.visible_keys.trunk_start_S[queries]
        if torch.equal(self.visible_keys.trunk_start_S[queries], whole):
            return None
        return self._additive(self.visible_keys.sees(queries[:, None], keys))

    def _additive(self, allowed: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(allowed.shape, dtype=self._dtype, device=allowed.device)
        return zeros.masked_fill(~allowed, float("-inf"))
