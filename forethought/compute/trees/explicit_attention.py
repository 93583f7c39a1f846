"""Attention over packed trees with explicit scores: for any device, soft caps, sinks and widths.

Design: some queries at a time, and recomputed in the backward pass, so that memory grows with the packed
row and not with its square. The price is time: every token is scored against all before it, those of other
trees and branches too, and again for a gradient.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from forethought.compute.trees.mask import TreeMask
from forethought.compute.trees.visible_keys import VisibleKeys

_QUERIES_AT_ONCE = 128


def explicit_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: TreeMask,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The output of the packed row. Shapes: query [1, heads, S, D], key and value [1, KV heads, S, D]."""
    options = (mask.visible_keys, scale, softcap, sinks)
    outs = []
    for start in range(0, query.shape[2], _QUERIES_AT_ONCE):
        part = query[:, :, start : start + _QUERIES_AT_ONCE]
        end = start + part.shape[2]
        out = checkpoint(  # type: ignore[no-untyped-call]
            _part,
            part,
            key[:, :, :end],
            value[:, :, :end],
            *options,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        outs.append(out)
    return torch.cat(outs, 2)


def _part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: VisibleKeys,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The output of the last queries of those whose keys are given."""
    num_heads, num_kv_heads = query.shape[1], key.shape[1]
    num_queries, num_keys = query.shape[2], key.shape[2]
    places = torch.arange(num_keys, device=key.device)
    seen = visible.sees(places[-num_queries:, None], places)
    folded = query.reshape(1, num_kv_heads, -1, query.shape[3])  # those of one key head together
    scores = (folded @ key.transpose(2, 3)).float() * scale
    scores = scores.view(1, num_heads, num_queries, num_keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        of_sink = sinks.float().view(1, -1, 1, 1).expand(1, num_heads, num_queries, 1)
        scores = torch.cat([scores, of_sink], -1)
    shares = scores.softmax(-1)[..., :num_keys].to(value.dtype)
    out = shares.reshape(1, num_kv_heads, -1, num_keys) @ value
    return out.view(1, num_heads, num_queries, value.shape[3])
