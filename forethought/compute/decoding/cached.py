"""Decoding with transformers' cache: every prefix is prefilled once, and its cache is copied for its rows.

Design: any layer that keeps its state in the cache can be decoded so, recurrent ones included. Prefixes are
padded on the left; where that changes numbers, the caller gives groups of one prefix length. The price is a
copy of the prefix for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from forethought.compute.decoding.decoder import Group
from forethought.compute.rows import PaddedRows, pad_left, tail_logits


class CachedDecoder:
    """A cache of whole rows."""

    def __init__(self, model: Any, groups: Sequence[Group], device: torch.device) -> None:
        self._model, self._device = model, device
        self._prefixes = pad_left([group.prefix_ids for group in groups], device)
        self._cache: Any = DynamicCache(config=model.config)
        self.owners_R = [i for i, group in enumerate(groups) for _ in range(group.num_rows)]
        self._mask = self._prefixes.attention_mask[self.owners_R]
        self._positions = self._prefixes.position_ids[self.owners_R, -1:]

    def first_logits(self) -> torch.Tensor:
        """See :class:`Decoder`."""
        logits = tail_logits(self._model, self._prefixes, 1, self._cache)
        # Unlike batch_select_indices, every kind of cache layer has it, recurrent ones included.
        self._cache.reorder_cache(torch.tensor(self.owners_R, device=self._device))
        return logits[self.owners_R, -1]

    def next_logits(self, ids_R: torch.Tensor) -> torch.Tensor:
        """See :class:`Decoder`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids_R), 1)], dim=1)
        self._positions = self._positions + 1
        rows = PaddedRows(ids_R[:, None], self._mask, self._positions)
        return tail_logits(self._model, rows, 1, self._cache)[:, -1]

    def keep(self, kept: Sequence[int]) -> None:
        """See :class:`Decoder`."""
        index = torch.tensor(kept, device=self._device)
        self._cache.reorder_cache(index)
        self._mask, self._positions = self._mask[index], self._positions[index]
        self.owners_R = [self.owners_R[slot] for slot in kept]
