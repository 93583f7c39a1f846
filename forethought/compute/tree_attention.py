"""Attention over packed trees, through transformers' attention interface and without a change to any model.

Design: trunks are causal attention as ever; branches attend to trunk and branch in two parts
(:mod:`forethought.compute.branch_attention`). Soft caps and sinks are computed with explicit scores, which
take memory by the square of the packed row. A model that computes its attention elsewhere, or with masks of
its own, is not changed by any of this, which the check at load finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from forethought.compute.branch_attention import branch_attention
from forethought.compute.tree_layout import TreeLayout
from forethought.compute.tree_mask import MaskFunction, TreeMask

NAME = "forethought_tree"
"""In transformers' registries of attention and mask functions."""

_current: ContextVar[TreeLayout] = ContextVar("layout")


@contextmanager
def attending_trees(model: Any, layout: TreeLayout) -> Iterator[None]:
    """Have a model's attention follow the layout within this context."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)
        model.set_attn_implementation(before)


def tree_mask(*_: Any, mask_function: MaskFunction, dtype: torch.dtype, **__: Any) -> TreeMask:
    """transformers' mask interface: what the model's own mask allows, with the layout."""
    return TreeMask(_current.get(), mask_function, dtype)


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: TreeMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. Shapes: query [1, heads, S, D], key and value [1, KV heads, S, D].

    Raises:
        TypeError: the model asks for attention that trees do not have.
    """
    if not isinstance(attention_mask, TreeMask) or position_bias is not None or dropout:
        raise TypeError("this model's attention has masks or biases of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is not None or s_aux is not None:
        out = _explicit(query, key, value, attention_mask, scale, softcap, s_aux)
    else:
        out = _fused(query, key, value, attention_mask, scale)
    return out.transpose(1, 2), None


def _explicit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: TreeMask,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask.allowed(), float("-inf"))
    if sinks is not None:
        of_sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, of_sink], -1)
    shares = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return shares @ value


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: TreeMask, scale: float
) -> torch.Tensor:
    width = value.shape[-1]
    if width != query.shape[-1]:  # multi-head latent attention; the kernel wants one width
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    layout = mask.layout
    parts = []
    for trunk, trunk_mask in zip(layout.trunks, mask.trunks, strict=True):
        at = slice(trunk.start, trunk.start + trunk.length)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, at],
                key[:, :, at],
                value[:, :, at],
                attn_mask=trunk_mask,
                is_causal=trunk_mask is None,
                scale=scale,
                enable_gqa=True,
            )
        )
    out = torch.empty_like(query) if not query.requires_grad else torch.zeros_like(query)
    places = [torch.arange(t.start, t.start + t.length) for t in layout.trunks]
    if len(layout.branch_Q):
        parts.append(branch_attention(query, key, value, mask, scale))
        places.append(layout.branch_Q)
    out = out.index_copy(2, torch.cat(places).to(query.device), torch.cat(parts, 2))
    return out[..., :width]


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)
