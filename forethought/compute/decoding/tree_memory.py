"""Keys and values of a decode batch: trunks once, and what each row has of its own.

Design: the layers of a model are identified by the order in which they call the attention function, the
same in every pass, so that nothing is asked of their modules. A row's own part, its tail and its sampled
tokens, is aligned so that all rows append at the same column; it is allocated in advance, and copied only
when rows are dropped. The price is a column for the longest tail in every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forethought.compute.decoding.blocks import Block, RowPlace, blocks_of
from forethought.compute.decoding.plan import DecodePlan
from forethought.compute.trees.layout import TreeLayout


@dataclass(slots=True)
class KeysValues:
    """Shapes: keys [B, heads, T, D], values [B, heads, T, D of values].

    Example:
        ``KeysValues(torch.zeros(16, 2, 40, 64), torch.zeros(16, 2, 40, 64))``
    """

    keys: torch.Tensor
    values: torch.Tensor

    def part(self, num_tokens: int) -> KeysValues:
        """The first tokens, not copied."""
        return KeysValues(self.keys[:, :, :num_tokens], self.values[:, :, :num_tokens])

    def select(self, index: torch.Tensor, num_tokens: int) -> KeysValues:
        """Some of the rows, with their first tokens copied and space for the others."""
        return KeysValues(
            _selected(self.keys, index, num_tokens), _selected(self.values, index, num_tokens)
        )


@dataclass(slots=True)
class LayerMemory:
    """One layer's trunks, by batch, and the own part of all rows.

    Example:
        ``LayerMemory([KeysValues(keys, values)], KeysValues(own_keys, own_values))``
    """

    trunks: list[KeysValues]
    own: KeysValues


@dataclass(frozen=True, slots=True)
class PrefillPass:
    """A forward pass over the trees of some batches: their layout, and the packed places to be kept.

    Example:
        ``PrefillPass(layout, trunks_BP=[places_BP], own_rows=slice(0, 64), own_RT=tails_RT)``
    """

    layout: TreeLayout
    trunks_BP: list[torch.Tensor]
    own_rows: slice
    own_RT: torch.Tensor


class TreeMemory:
    """All layers' keys and values, and where each row and each of its tokens lies.

    ``num_own`` are the columns that every row has of its own; the first ``longest_tail`` hold tails,
    aligned on the right.
    """

    def __init__(self, plan: DecodePlan, device: torch.device) -> None:
        self._device = device
        self.owners_R = plan.owners_R
        self._places_R = plan.places_R
        self.longest_tail = self.num_own = plan.longest_tail
        self._max_own = self.num_own + max(group.max_tokens for group in plan.groups)
        self._trunks = [list(range(len(batch))) for batch in plan.batches]
        lengths = [len(plan.groups[owner].prefix_ids) for owner in self.owners_R]
        self.lengths_R = torch.tensor(lengths, device=device)
        self.indices_R = torch.tensor([place.index for place in self._places_R], device=device)
        self.layers: list[LayerMemory] = []
        self._num_calls = 0
        self._arrange()

    @property
    def trunk_bytes(self) -> int:
        """Of the keys and values of all trunks."""
        kept = [trunks for layer in self.layers for trunks in layer.trunks]
        return sum(one.keys.nbytes + one.values.nbytes for one in kept)

    def _arrange(self) -> None:
        sizes = [len(trunks) for trunks in self._trunks]
        self.blocks: list[Block] = list(blocks_of(self._places_R, sizes, self._device))
        self.max_keys = max(block.num_keys for block in self.blocks)

    def begin(self) -> None:
        """A forward pass begins."""
        self._num_calls = 0

    def end(self) -> None:
        """A forward pass ended.

        Raises:
            TypeError: not all of the model's attention was asked for.
        """
        if not self.layers or self._num_calls != len(self.layers):
            raise TypeError("this model computes its attention elsewhere")

    def prefill(self, prefill: PrefillPass, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep a layer's keys and values of a packed row. Shapes [1, heads, S, D]."""
        if self._num_calls == len(self.layers):
            own = KeysValues(self._own_like(key), self._own_like(value))
            self.layers.append(LayerMemory([], own))
        layer = self.next_layer()
        for places_BP in prefill.trunks_BP:
            layer.trunks.append(KeysValues(_at(key, places_BP), _at(value, places_BP)))
        if self.longest_tail:
            rows, tail = prefill.own_rows, self.longest_tail
            layer.own.keys[rows, :, :tail] = _at(key, prefill.own_RT)
            layer.own.values[rows, :, :tail] = _at(value, prefill.own_RT)

    def next_layer(self) -> LayerMemory:
        """The layer whose attention is computed now."""
        self._num_calls += 1
        return self.layers[self._num_calls - 1]

    def append(self, layer: LayerMemory, key: torch.Tensor, value: torch.Tensor) -> KeysValues:
        """Keep a token of every row, given as [1, heads, R, D]; returns the rows' own part with it."""
        newest = self.num_own - 1
        layer.own.keys[:, :, newest] = key[0].transpose(0, 1)
        layer.own.values[:, :, newest] = value[0].transpose(0, 1)
        return layer.own.part(self.num_own)

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all other rows, and trunks that are left without one."""
        index = torch.tensor(kept, device=self._device)
        self.owners_R = [self.owners_R[slot] for slot in kept]
        self._places_R = [self._places_R[slot] for slot in kept]
        self.lengths_R, self.indices_R = self.lengths_R[index], self.indices_R[index]
        for layer in self.layers:
            layer.own = layer.own.select(index, self.num_own)
        for batch in range(len(self._trunks)):
            self._keep_trunks(batch)
        self._arrange()

    def _keep_trunks(self, batch: int) -> None:
        """Trunks of a batch are dropped once that leaves half of them."""
        alive = sorted({place.trunk for place in self._places_R if place.batch == batch})
        before = self._trunks[batch]
        if 2 * len(alive) > len(before) or not before:
            return
        index = torch.tensor(alive, device=self._device, dtype=torch.long)
        for layer in self.layers:
            trunks = layer.trunks[batch]
            layer.trunks[batch] = trunks.select(index, trunks.keys.shape[2])
        moved = {trunk: i for i, trunk in enumerate(alive)}
        self._trunks[batch] = alive
        self._places_R = [
            RowPlace(batch, moved[place.trunk], place.index) if place.batch == batch else place
            for place in self._places_R
        ]

    def _own_like(self, tensor: torch.Tensor) -> torch.Tensor:
        shape = (len(self.owners_R), tensor.shape[1], self._max_own, tensor.shape[3])
        return tensor.new_empty(shape)


def _selected(tensor: torch.Tensor, index: torch.Tensor, num_tokens: int) -> torch.Tensor:
    selected = tensor.new_empty((len(index), *tensor.shape[1:]))
    selected[:, :, :num_tokens] = tensor[index, :, :num_tokens]
    return selected


def _at(tensor: torch.Tensor, places_BP: torch.Tensor) -> torch.Tensor:
    """From [1, heads, S, D] to [B, heads, P, D]."""
    heads = torch.arange(tensor.shape[1], device=tensor.device)
    return tensor[0, heads[None, :, None], places_BP[:, None]]
