"""FlexAttention's mask of packed trees: the blocks of 128 queries and 128 keys in which there is work.

Design: a block is left out if no query sees a key of it, and computed without a mask if every query sees
all of it. Both follow from the spans of keys (:mod:`forethought.compute.trees.visible_keys`), so nothing is
as large as S x S. The price is S / 128 comparisons a token, a byte each for a moment (134 MB at
S = 131,072).
"""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from forethought.compute.trees.visible_keys import VisibleKeys

_BLOCK_TOKENS = 128
_MIN_TOKENS = 2 * _BLOCK_TOKENS  # PyTorch compiles anew for a single block, and for rows below one


def block_mask_of(visible: VisibleKeys) -> BlockMask:
    """The mask of the packed row, or of the row padded to two blocks: padding sees itself."""
    spans = (visible.trunk_start_S, visible.trunk_end_S, visible.own_start_S)
    start, end, own = (_at_least_two_blocks(span.int()) for span in spans)

    def sees(_b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return ((k >= start[q]) & (k < end[q])) | ((k >= own[q]) & (k <= q))

    has_work, is_full = _blocks(start, end, own)
    return BlockMask.from_kv_blocks(
        *_listed(has_work & ~is_full),
        *_listed(is_full),
        BLOCK_SIZE=_BLOCK_TOKENS,
        mask_mod=sees,
        seq_lengths=(len(start), len(start)),
    )


def _at_least_two_blocks(span_S: torch.Tensor) -> torch.Tensor:
    length = max(len(span_S), _MIN_TOKENS)
    places = torch.arange(len(span_S), length, dtype=span_S.dtype, device=span_S.device)
    return torch.cat([span_S, places])


def _blocks(
    start_S: torch.Tensor, end_S: torch.Tensor, own_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In which blocks a query sees a key, and in which all see all. Shape [query blocks, key blocks]."""
    start, last, own = start_S[:, None], end_S[:, None] - 1, own_S[:, None]
    query = torch.arange(len(start_S), dtype=start_S.dtype, device=start_S.device)[:, None]
    first_key = query[::_BLOCK_TOKENS, 0]
    last_key = first_key + _BLOCK_TOKENS - 1
    sees_any = (start <= last) & (first_key <= last) & (last_key >= start)
    sees_any |= (first_key <= query) & (last_key >= own)
    sees_all = (first_key >= start) & (last_key <= last)
    sees_all |= (first_key >= own) & (last_key <= query)
    return _by_query_block(sees_any).any(1), _by_query_block(sees_all).all(1)


def _by_query_block(of_queries: torch.Tensor) -> torch.Tensor:
    """In blocks, the last one filled up with queries that see nothing."""
    missing = -len(of_queries) % _BLOCK_TOKENS
    return pad(of_queries, (0, 0, 0, missing)).view(-1, _BLOCK_TOKENS, of_queries.shape[1])


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many key blocks each query block has, and which, in FlexAttention's form."""
    indices = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1)[None, None].int(), indices[None, None].int()
