"""Decoding without any cache: every token by a pass over the whole row.

Design: exact for every causal model, also where a cache is ignored, foreign or faulty. Groups are of one
prefix length, so that no row is ever padded. The price is a pass over all tokens for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from forethought.compute.decoding.decoder import Group
from forethought.compute.rows import PaddedRows, tail_logits


class RecomputedDecoder:
    """The tokens of whole rows."""

    def __init__(self, model: Any, groups: Sequence[Group], device: torch.device) -> None:
        self._model = model
        self._ids_RT = torch.tensor([group.prefix_ids for group in groups], device=device)
        self.owners_R = [i for i, group in enumerate(groups) for _ in range(group.num_rows)]

    def first_logits(self) -> torch.Tensor:
        """See :class:`Decoder`."""
        logits = self._logits()[self.owners_R]
        self._ids_RT = self._ids_RT[self.owners_R]
        return logits

    def next_logits(self, ids_R: torch.Tensor) -> torch.Tensor:
        """See :class:`Decoder`."""
        self._ids_RT = torch.cat([self._ids_RT, ids_R[:, None]], dim=1)
        return self._logits()

    def keep(self, kept: Sequence[int]) -> None:
        """See :class:`Decoder`."""
        self._ids_RT = self._ids_RT[list(kept)]
        self.owners_R = [self.owners_R[slot] for slot in kept]

    def _logits(self) -> torch.Tensor:
        ids = self._ids_RT
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return tail_logits(self._model, PaddedRows(ids, torch.ones_like(ids), positions), 1)[:, -1]
