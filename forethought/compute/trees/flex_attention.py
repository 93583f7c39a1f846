"""Attention over packed trees on a GPU: one kernel of PyTorch's FlexAttention, forward and backward.

Design: the mask of blocks lets the kernel skip what no token sees, so that nothing is padded, copied or
computed twice. It is compiled for all lengths at once, in half a minute when a model is first used. The
price is Triton; where that is missing, or heads are wider than the kernel takes, scores are explicit
(:mod:`forethought.compute.trees.explicit_attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from forethought.compute.trees.mask import TreeMask

_MIN_WIDTH, _MAX_WIDTH = 16, 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def flex_takes(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether FlexAttention computes these heads on their device. Shapes: [1, heads, S, D]."""
    widest = max(query.shape[-1], value.shape[-1])
    return query.is_cuda and _has_triton() and widest <= _MAX_WIDTH and query.dtype in _DTYPES


def flex_tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: TreeMask,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The output of the packed row. Shapes: query [1, heads, S, D], key and value [1, KV heads, S, D]."""
    length, width = query.shape[2], value.shape[-1]
    blocks = mask.blocks
    query, key, value = (_padded(tensor, blocks) for tensor in (query, key, value))
    # The kernel's own scale follows from the width; any other would be one more thing to compile for.
    factor = scale * query.shape[-1] ** 0.5
    caps = None if softcap is None else torch.full(query.shape[1:2], softcap, device=query.device)
    out: torch.Tensor
    out, aux = _compiled()(query if factor == 1 else query * factor, key, value, blocks, caps)
    if sinks is not None:  # one more score in the softmax, with a value of 0
        share = torch.sigmoid(aux.lse - sinks.float()[:, None])
        out = (out * share[..., None]).to(value.dtype)
    return out[:, :, :length, :width]


def _padded(tensor: torch.Tensor, blocks: BlockMask) -> torch.Tensor:
    tokens = blocks.seq_lengths[0] - tensor.shape[2]
    width = max(0, _MIN_WIDTH - tensor.shape[3])
    return pad(tensor, (0, width, 0, tokens)) if tokens or width else tensor


@cache
def _compiled() -> Any:
    return torch.compile(_attend, dynamic=True)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: BlockMask,
    caps: torch.Tensor | None,
) -> Any:
    """The output and the log-normalisers of all heads. Soft caps are given by head: a number would be one
    more thing to compile for.
    """
    return flex_attention(
        query,
        key,
        value,
        score_mod=None if caps is None else _capped(caps),
        block_mask=blocks,
        enable_gqa=True,
        return_aux=AuxRequest(lse=True),
    )


def _capped(caps: torch.Tensor) -> Callable[..., torch.Tensor]:
    def capped(score: torch.Tensor, _b: Any, head: Any, _q: Any, _k: Any) -> torch.Tensor:
        return caps[head] * torch.tanh(score / caps[head])

    return capped


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
