"""Decoding with thought trees: one trunk for all rows of all positions of a document.

Design: a prefill of packed trees, cut into passes of a bounded number of tokens, then one packed row of the
last tokens of all rows alive. No key of a trunk is ever copied for a row. The price is a model whose
attention can be replaced (:mod:`forethought.compute.trees.attention`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from forethought.compute.decoding.attention import decoding_pass
from forethought.compute.decoding.decoder import Group
from forethought.compute.decoding.plan import DecodePlan, num_keys, plan_of
from forethought.compute.decoding.tree_memory import PrefillPass, TreeMemory
from forethought.compute.rows import logits_at
from forethought.compute.trees.layout import TreeLayout, layout_of
from forethought.compute.trees.tree import Tree

_PREFILL_TOKENS = 4096  # of a pass, unless one tree has more


class TreeDecoder:
    """Trunks shared by rows; the model's attention has to be replaced meanwhile."""

    def __init__(self, model: Any, groups: Sequence[Group], device: torch.device) -> None:
        self._model, self._device = model, device
        self._plan = plan_of(groups)
        self._memory = TreeMemory(self._plan, device)

    @property
    def owners_R(self) -> list[int]:
        """See :class:`Decoder`."""
        return self._memory.owners_R

    @property
    def trunk_bytes(self) -> int:
        """Of the keys and values of all trunks."""
        return self._memory.trunk_bytes

    def first_logits(self) -> torch.Tensor:
        """See :class:`Decoder`."""
        of_group: dict[int, torch.Tensor] = {}
        for prefill, last in _passes(self._plan, self._device):
            layout = prefill.layout
            with decoding_pass(self._memory, prefill):
                logits = logits_at(
                    self._model, layout.input_ids, layout.position_ids, list(last.values())
                )
            of_group |= zip(last, logits, strict=True)
        return torch.stack([of_group[owner] for owner in self.owners_R])

    def next_logits(self, ids_R: torch.Tensor) -> torch.Tensor:
        """See :class:`Decoder`."""
        memory = self._memory
        memory.num_own += 1
        positions = memory.lengths_R + (memory.num_own - 1 - memory.longest_tail)
        with decoding_pass(memory):
            return logits_at(self._model, ids_R[None], positions[None])

    def keep(self, kept: Sequence[int]) -> None:
        """See :class:`Decoder`."""
        self._memory.keep(kept)


def _passes(plan: DecodePlan, device: torch.device) -> Iterator[tuple[PrefillPass, dict[int, int]]]:
    """Consecutive batches of trunks, and the packed place of the last token of every group in them."""
    start = num_tokens = row = 0
    for end, batch in enumerate(plan.batches):
        of_batch = sum(tree.num_tokens for tree in batch)
        if end > start and num_tokens + of_batch > _PREFILL_TOKENS:
            yield _pass(plan, start, end, row, device)
            row += sum(_num_rows(plan, one) for one in plan.batches[start:end])
            start, num_tokens = end, 0
        num_tokens += of_batch
    yield _pass(plan, start, len(plan.batches), row, device)


def _pass(
    plan: DecodePlan, start: int, end: int, first_row: int, device: torch.device
) -> tuple[PrefillPass, dict[int, int]]:
    batches = plan.batches[start:end]
    layout = layout_of([tree for batch in batches for tree in batch], device)
    last: dict[int, int] = {}
    own: list[list[int]] = []
    for branch in (branch for batch in batches for tree in batch for branch in tree.branches):
        trunk, place, index = layout.starts[branch.row]
        length = len(branch.token_ids)
        last[branch.row] = place + length - 1 if length else trunk + index - 1
        padded = [0] * (plan.longest_tail - length) + list(range(place, place + length))
        own += [padded] * plan.groups[branch.row].num_rows
    prefill = PrefillPass(
        layout,
        [_trunk_places(batch, layout).to(device) for batch in batches],
        slice(first_row, first_row + len(own)),
        torch.tensor(own, dtype=torch.long, device=device),
    )
    return prefill, last


def _trunk_places(batch: Sequence[Tree], layout: TreeLayout) -> torch.Tensor:
    """The packed places of a batch's trunks. Beyond a shorter one's end no row looks at what is there."""
    starts = [layout.starts[tree.branches[0].row][0] for tree in batch]
    places = torch.tensor(starts)[:, None] + torch.arange(num_keys(batch))
    return places.clamp_max(layout.input_ids.shape[1] - 1)


def _num_rows(plan: DecodePlan, batch: Sequence[Tree]) -> int:
    return sum(plan.groups[branch.row].num_rows for tree in batch for branch in tree.branches)
