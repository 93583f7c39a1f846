"""Attention while decoding with thought trees, through transformers' attention interface.

    scores of a row    its trunk's first keys | its own keys      one softmax over both

Design: a prefill is computed as any packed row (:mod:`forethought.compute.trees.attention`), and its keys
and values are kept. A decode step has one query a row, so its scores are small and computed explicitly,
with soft caps, sinks and whatever the layer's own mask leaves out. Rows of a block share a product with
their trunk's keys; only their own keys are multiplied row by row. The price is scores in memory, one for
every head, row and key of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from forethought.compute.decoding.blocks import Block
from forethought.compute.decoding.tree_memory import PrefillPass, TreeMemory
from forethought.compute.trees.attention import attention_named, tree_attention
from forethought.compute.trees.mask import TreeMask
from forethought.compute.trees.visible_keys import MaskFunction

NAME = "forethought_decode"
"""In transformers' registries of attention and mask functions."""


@dataclass(frozen=True, slots=True)
class _Pass:
    memory: TreeMemory
    prefill: PrefillPass | None


_current: ContextVar[_Pass] = ContextVar("pass")


@contextmanager
def decoding_attention(model: Any) -> Iterator[None]:
    """Have a model's attention be that of decoding within this context."""
    with attention_named(model, NAME):
        yield


@contextmanager
def decoding_pass(memory: TreeMemory, prefill: PrefillPass | None = None) -> Iterator[None]:
    """A forward pass: a prefill, or a step that appends a token to every row of the memory."""
    token = _current.set(_Pass(memory, prefill))
    memory.begin()
    try:
        yield
        memory.end()
    finally:
        _current.reset(token)


class StepMask:
    """What every row sees in one layer: an additive mask for each block. Shape [B, 1, G, 1, P + own]."""

    def __init__(self, memory: TreeMemory, allows: MaskFunction) -> None:
        device, num_own = memory.indices_R.device, memory.num_own
        self.memory = memory
        zero = torch.zeros((), dtype=torch.long, device=device)
        first_own_R1 = (memory.lengths_R - memory.longest_tail)[:, None]
        positions_R1 = first_own_R1 + (num_own - 1)
        keys = torch.arange(memory.max_keys, device=device)[None]
        own = first_own_R1 + torch.arange(num_own, device=device)
        indices_R1 = memory.indices_R[:, None]
        of_trunk = allows(zero, zero, positions_R1, keys) & (keys < indices_R1)
        of_own = allows(zero, zero, positions_R1, own) & (own >= indices_R1)
        trunk, own = _additive(of_trunk), _additive(of_own)
        self.blocks = [_of_block(block, trunk, own) for block in memory.blocks]


def _additive(allowed: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(allowed.shape, device=allowed.device)
    return zeros.masked_fill(~allowed, float("-inf"))


def _of_block(block: Block, trunk_RP: torch.Tensor, own_RT: torch.Tensor) -> torch.Tensor:
    rows = slice(block.start, block.end)
    seen = torch.cat([trunk_RP[rows, : block.num_keys], own_RT[rows]], 1)
    return _slots(block, seen).view(block.num_trunks, 1, -1, 1, seen.shape[1])


def _slots(block: Block, of_rows: torch.Tensor) -> torch.Tensor:
    """A block's rows in their slots."""
    return of_rows if block.row_of_slot is None else of_rows[block.row_of_slot]


def decode_mask(*_: Any, mask_function: MaskFunction, dtype: torch.dtype, **__: Any) -> Any:
    """transformers' mask interface."""
    current = _current.get()
    if current.prefill:
        return TreeMask(current.prefill.layout, mask_function, dtype)
    return StepMask(current.memory, mask_function)


def decode_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. Shapes: query [1, heads, R, D], key and value [1, KV heads, R, D].

    Raises:
        TypeError: the model asks for attention that trees do not have.
    """
    current = _current.get()
    if current.prefill:
        current.memory.prefill(current.prefill, key, value)
        kinds = (scaling, dropout, softcap, s_aux, position_bias)
        return tree_attention(module, query, key, value, attention_mask, *kinds, **others)
    if not isinstance(attention_mask, StepMask) or position_bias is not None or dropout:
        raise TypeError("this model's attention has masks or biases of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    given = _Scores(scale, softcap, s_aux)
    return _step(query, key, value, attention_mask, given)[None], None


@dataclass(frozen=True, slots=True)
class _Scores:
    """What a layer makes of the products of queries and keys."""

    scale: float
    softcap: float | None
    sinks: torch.Tensor | None

    def shares(self, products: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Their softmax in float32; overwrites them. Shape [B, KV heads, G, heads of one, P + own]."""
        scores = products.float().mul_(self.scale)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores += mask
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.float().view(1, scores.shape[1], 1, -1, 1)
        with_sinks = torch.cat([scores, sinks.expand(*scores.shape[:4], 1)], -1)
        return with_sinks.softmax(-1)[..., :-1]


def _step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: StepMask,
    given: _Scores,
) -> torch.Tensor:
    """The output of a layer at every row's newest token. Shape [R, heads, D]."""
    memory = mask.memory
    layer = memory.next_layer()
    own = memory.append(layer, key, value)
    query_RHND = _by_heads(query, key.shape[1])
    own_scores = _product(query_RHND, own.keys.transpose(2, 3))
    outs, own_shares = [], []
    for block, block_mask in zip(memory.blocks, mask.blocks, strict=True):
        trunks = layer.trunks[block.batch].part(block.num_keys)
        rows = slice(block.start, block.end)
        queries = _by_trunk(block, query_RHND[rows])
        scores = _product(queries.flatten(2, 3), trunks.keys.transpose(2, 3))
        scores = scores.view(*queries.shape[:4], -1)
        scores = torch.cat([scores, _by_trunk(block, own_scores[rows])], -1)
        shares = given.shares(scores, block_mask).to(value.dtype)
        out = _product(shares[..., : block.num_keys].flatten(2, 3), trunks.values)
        outs.append(_by_row(block, out.view(*queries.shape[:4], -1)))
        own_shares.append(_by_row(block, shares[..., block.num_keys :]))
    out_RHND = torch.cat(outs) + _product(torch.cat(own_shares), own.values)
    return out_RHND.flatten(1, 2)


def _by_heads(query: torch.Tensor, num_heads: int) -> torch.Tensor:
    """From [1, heads, R, D] to [R, KV heads, heads of one, D]."""
    return query[0].transpose(0, 1).reshape(query.shape[2], num_heads, -1, query.shape[3])


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix products over the first two dimensions."""
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1))
    return product.view(*left.shape[:2], *product.shape[1:])


def _by_trunk(block: Block, of_rows: torch.Tensor) -> torch.Tensor:
    """From [rows, KV heads, heads of one, X] to [trunks, KV heads, slots, heads of one, X]."""
    slots = _slots(block, of_rows)
    return slots.view(block.num_trunks, -1, *slots.shape[1:]).transpose(1, 2)


def _by_row(block: Block, by_trunk: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_by_trunk`."""
    slots = by_trunk.transpose(1, 2).flatten(0, 1)
    return slots if block.slot_of_row is None else slots[block.slot_of_row]


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, decode_mask)
