"""Attention over packed trees with explicit scores: for any device, soft caps, sinks and widths.

Design: some queries at a time, and recomputed in the backward pass, so that memory grows with the packed
row and not with its square. The price is time: every token is scored against all before it, those of other
trees and branches too, and again for a gradient.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from forethought.compute.tree_mask import TreeMask

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
    places = torch.arange(query.shape[2], device=query.device)
    outs = []
    for start in range(0, len(places), _QUERIES_AT_ONCE):
        queries = places[start : start + _QUERIES_AT_ONCE]
        end = start + len(queries)
        seen = mask.visible_keys.sees(queries[:, None], places[:end])
        inputs = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
        part = checkpoint(  # type: ignore[no-untyped-call]
            _part,
            *inputs,
            seen,
            scale,
            softcap,
            sinks,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        outs.append(part)
    return torch.cat(outs, 2)


def _part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The output of some queries; ``seen`` says of each which keys it sees. Shape [queries, keys]."""
    num_heads, num_kv_heads, num_queries, num_keys = query.shape[1], key.shape[1], *seen.shape
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
