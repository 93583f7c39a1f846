"""Attention of branch tokens to their part of a trunk and to their branch, without copying the trunk.

    out = sum_i exp(lse_i - lse) out_i,    lse = log sum_i exp(lse_i),    i: trunk[:index], branch

Design: two calls of PyTorch's fused kernel, which returns the log-normalisers of its softmax. The backward
pass gives each part's kernel the *whole* output and normaliser, by which its gradient becomes that of the
whole softmax (as in ring attention). The price: the kernels are called by their internal names, so that a
later PyTorch may change them; the check at load would find it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from forethought.compute.tree_layout import BranchGroup, TreeLayout
from forethought.compute.tree_mask import TreeMask

_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def split_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: TreeMask, scale: float
) -> torch.Tensor:
    """The output of the packed row: trunks are causal attention as ever, branches come in two parts.

    Shapes: query [1, heads, S, D], key and value [1, KV heads, S, D].
    """
    width = value.shape[-1]
    if width != query.shape[-1]:  # multi-head latent attention; the kernel wants one width
        value = pad(value, (0, query.shape[-1] - width))
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
        parts.append(_branch_attention(query, key, value, mask, scale))
        places.append(layout.branch_Q)
    out = out.index_copy(2, torch.cat(places).to(query.device), torch.cat(parts, 2))
    return out[..., :width]


def _branch_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: TreeMask, scale: float
) -> torch.Tensor:
    """The output at all branch tokens. Shape [1, heads, Q, D]."""
    out: torch.Tensor = _BranchAttention.apply(query, key, value, mask, scale)  # type: ignore[no-untyped-call]
    return out


class _BranchAttention(torch.autograd.Function):
    """Attention of all branch tokens to trunk and branch. Shape [1, heads, Q, D]."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: TreeMask, scale: float) -> Any:
        layout = mask.layout
        own_out, own_lse = _flash(
            *_own(query, key, value, layout),
            is_causal=mask.own is None,
            attn_mask=mask.own,
            scale=scale,
        )
        own_out, own_lse = _flat(own_out, layout), _flat(own_lse[..., None], layout)
        trunk_out = torch.zeros_like(own_out)
        trunk_lse = torch.full_like(own_lse, float("-inf"))
        for group, group_mask in zip(layout.groups, mask.groups, strict=True):
            part = slice(group.start, group.end)
            q, k, v = _to_trunk(query, key, value, layout, group)
            out, lse = _flash(q, k, v, attn_mask=_folded(group_mask, q), scale=scale)
            trunk_out[:, part] = out.reshape(trunk_out[:, part].shape)
            lse = lse.reshape(trunk_lse[:, part].shape)
            if group_mask is not None:  # the kernel gives 0 for a token that sees no key
                lse = lse.masked_fill(group_mask.isneginf().all(1)[:, None], float("-inf"))
            trunk_lse[:, part] = lse
        lse = torch.logaddexp(own_lse, trunk_lse)
        merged = own_out * (own_lse - lse).exp() + trunk_out * (trunk_lse - lse).exp()
        merged = merged.to(query.dtype)
        ctx.save_for_backward(query, key, value, merged, lse)
        ctx.mask, ctx.scale = mask, scale
        return merged[None]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        mask, layout = ctx.mask, ctx.mask.layout
        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        own = _flash_backward(
            _padded(grad[0], layout) * layout.is_token_RT[:, None, :, None],
            *_own(query, key, value, layout),
            _padded(out, layout),
            _padded(lse, layout)[..., 0],
            0.0,
            mask.own is None,
            attn_mask=mask.own,
            scale=ctx.scale,
        )
        for total, of_own in zip(grads, own, strict=True):
            flat = _flat(of_own, layout)
            of_kv_heads = flat.view(total.shape[1], -1, *flat.shape[1:]).sum(1)
            total[0].index_copy_(1, layout.branch_Q, of_kv_heads)
        for group, group_mask in zip(layout.groups, mask.groups, strict=True):
            part = slice(group.start, group.end)
            q, k, v = _to_trunk(query, key, value, layout, group)
            dq, dk, dv = _flash_backward(
                grad[0, :, part].reshape(q.shape),
                q,
                k,
                v,
                out[:, part].reshape(q.shape),
                lse[:, part].reshape(q.shape[:3]),
                0.0,
                False,
                attn_mask=_folded(group_mask, q),
                scale=ctx.scale,
            )
            of_trunk = slice(group.trunk.start, group.trunk.start + group.index)
            grads[0][0].index_add_(1, layout.branch_Q[part], dq.reshape(grad[0, :, part].shape))
            grads[1][:, :, of_trunk] += dk
            grads[2][:, :, of_trunk] += dv
        return *grads, None, None


def _own(query: Any, key: Any, value: Any, layout: TreeLayout) -> tuple[Any, Any, Any]:
    """Branches by themselves, keys and values repeated for all heads. Shape [R, heads, T, D] each."""
    places_RT = layout.branch_Q[layout.padded_RT]
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (tensor[0][:, places_RT].transpose(0, 1) for tensor in (query, key, value))
    return q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)


def _to_trunk(
    query: Any, key: Any, value: Any, layout: TreeLayout, group: BranchGroup
) -> tuple[Any, Any, Any]:
    """A group's queries, those of one key head together, and their trunk. Shape [1, KV heads, …, D]."""
    of_trunk = slice(group.trunk.start, group.trunk.start + group.index)
    q = query[:, :, layout.branch_Q[group.start : group.end]]
    folded = q.reshape(1, key.shape[1], -1, q.shape[-1])
    return folded, key[:, :, of_trunk], value[:, :, of_trunk]


def _folded(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """A group's mask for the queries of one key head together."""
    return None if mask is None else mask.repeat(query.shape[2] // len(mask), 1)


def _flat(padded: torch.Tensor, layout: TreeLayout) -> torch.Tensor:
    """From [R, heads, T, D] to the branch tokens, [heads, Q, D]."""
    return padded.transpose(0, 1).flatten(1, 2)[:, layout.flat_Q]


def _padded(flat: torch.Tensor, layout: TreeLayout) -> torch.Tensor:
    """From the branch tokens, [heads, Q, D], to [R, heads, T, D]."""
    return flat[:, layout.padded_RT].transpose(0, 1)
