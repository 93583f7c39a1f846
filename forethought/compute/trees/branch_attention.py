"""Attention of packed trees on a CPU: branches attend to trunk and branch without a copy of the trunk.

    out = sum_i exp(lse_i - lse) out_i,    lse = log sum_i exp(lse_i),    i: trunk[:index], branch

Design: calls of PyTorch's fused kernel, which returns the log-normalisers of its softmax. The backward
pass gives each part's kernel the *whole* output and normaliser, by which its gradient becomes that of the
whole softmax (as in ring attention). It is one function for the whole row, because autograd would pad the
gradient of every part to the row. The price: the kernels are called by their internal names, so that a
later PyTorch may change them; the check at load would find it.

In bfloat16 the backward kernel takes four times as long as in float32 where a product has few keys, and as
long where it has many, so that parts with few keys are computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from forethought.compute.trees.layout import BranchGroup, Trunk
from forethought.compute.trees.mask import TreeMask

_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_FEW_KEYS = 256


def split_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: TreeMask, scale: float
) -> torch.Tensor:
    """The output of the packed row.

    Shapes: query [1, heads, S, D], key and value [1, KV heads, S, D]; returned [1, heads, S, D of value].
    """
    width = value.shape[-1]
    if width != query.shape[-1]:  # multi-head latent attention; the kernel wants one width
        value = pad(value, (0, query.shape[-1] - width))
    out: torch.Tensor = _SplitAttention.apply(query, key, value, mask, scale)  # type: ignore[no-untyped-call]
    return out[..., :width]


def _flash_backward(
    grad: torch.Tensor,
    qkv: tuple[torch.Tensor, ...],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    *,
    is_causal: bool = False,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """The gradients of a part's query, key and value."""
    given, dtype = (grad, *qkv, out), grad.dtype
    if dtype.itemsize < 4 and qkv[1].shape[2] <= _FEW_KEYS:
        given = tuple(tensor.float() for tensor in given)
        mask = None if mask is None else mask.float()
    grads = _kernel_backward(*given, lse, 0.0, is_causal, attn_mask=mask, scale=scale)
    return tuple(one.to(dtype) for one in grads)


class _SplitAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: TreeMask, scale: float) -> Any:
        out, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        for trunk, trunk_mask in zip(mask.layout.trunks, mask.trunks, strict=True):
            at = _places(trunk)
            of_trunk = _trunk(query, key, value, trunk)
            out[:, :, at], lse[:, :, at] = _flash(
                *of_trunk, is_causal=trunk_mask is None, attn_mask=trunk_mask, scale=scale
            )
        if len(mask.layout.branch_Q):
            _Branches(query, key, value, mask, scale).forward(out, lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.mask, ctx.scale = mask, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        mask, scale = ctx.mask, ctx.scale
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for trunk, trunk_mask in zip(mask.layout.trunks, mask.trunks, strict=True):
            at = _places(trunk)
            of_trunk = _flash_backward(
                grad[:, :, at],
                _trunk(query, key, value, trunk),
                out[:, :, at],
                lse[:, :, at],
                scale,
                is_causal=trunk_mask is None,
                mask=trunk_mask,
            )
            for total, one in zip(grads, of_trunk, strict=True):
                total[:, :, at] = _of_kv_heads(one, total.shape[1])
        if len(mask.layout.branch_Q):
            _Branches(query, key, value, mask, scale).backward(grad, out, lse, grads)
        return *grads, None, None


class _Branches:
    """The branches' share of a packed row: its outputs, and gradients added to those of the trunks."""

    def __init__(self, query: Any, key: Any, value: Any, mask: TreeMask, scale: float) -> None:
        self._query, self._key, self._value = query, key, value
        self._mask, self._layout, self._scale = mask, mask.layout, scale
        self._places_RT = self._layout.branch_Q[self._layout.padded_RT]

    def forward(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Write the output and the log-normaliser at the branch tokens."""
        own = _flash(
            *self._own(),
            is_causal=self._mask.own is None,
            attn_mask=self._mask.own,
            scale=self._scale,
        )
        own_out, own_lse = self._flat(own[0]), self._flat(own[1][..., None])[..., 0]
        trunk_out = torch.zeros_like(own_out)
        trunk_lse = torch.full_like(own_lse, float("-inf"))
        for group, group_mask in zip(self._layout.groups, self._mask.groups, strict=True):
            part = slice(group.start, group.end)
            q, k, v = self._to_trunk(group)
            of_group = _flash(q, k, v, attn_mask=_folded(group_mask, q), scale=self._scale)
            trunk_out[part] = _unfolded(of_group[0], part)
            group_lse = _unfolded(of_group[1][..., None], part)[..., 0]
            if group_mask is not None:  # the kernel gives 0 for a token that sees no key
                unseeing = group_mask.isneginf().all(1)
                group_lse = group_lse.masked_fill(unseeing[:, None], float("-inf"))
            trunk_lse[part] = group_lse
        whole = torch.logaddexp(own_lse, trunk_lse)
        merged = own_out * (own_lse - whole).exp()[..., None]
        merged += trunk_out * (trunk_lse - whole).exp()[..., None]
        _tokens(out)[self._layout.branch_Q] = merged.to(out.dtype)
        _tokens(lse[..., None])[self._layout.branch_Q] = whole[..., None]

    def backward(
        self, grad: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, grads: list[torch.Tensor]
    ) -> None:
        """Write the gradients of branch tokens, and add those of trunks; both by query, key and value."""
        own = _flash_backward(
            self._padded(grad) * self._layout.is_token_RT[:, None, :, None],
            self._own(),
            self._padded(out),
            self._padded(lse[..., None])[..., 0],
            self._scale,
            is_causal=self._mask.own is None,
            mask=self._mask.own,
        )
        for total, one in zip(grads, own, strict=True):
            flat = self._flat(_of_kv_heads(one, total.shape[1]))
            _tokens(total).index_copy_(0, self._layout.branch_Q, flat)
        for group, group_mask in zip(self._layout.groups, self._mask.groups, strict=True):
            at, of_trunk = _branch_places(group), _seen_places(group)
            q, k, v = self._to_trunk(group)
            dq, dk, dv = _flash_backward(
                grad[:, :, at].reshape(q.shape),
                (q, k, v),
                out[:, :, at].reshape(q.shape),
                lse[:, :, at].reshape(q.shape[:3]),
                self._scale,
                mask=_folded(group_mask, q),
            )
            grads[0][:, :, at] += dq.reshape(grad[:, :, at].shape)
            grads[1][:, :, of_trunk] += dk
            grads[2][:, :, of_trunk] += dv

    def _own(self) -> tuple[torch.Tensor, ...]:
        """Branches by themselves, keys and values repeated for all heads. Shape [R, heads, T, D] each."""
        heads = self._query.shape[1]
        every = (self._query, self._key, self._value)
        return tuple(_for_heads(self._padded(tensor), heads) for tensor in every)

    def _to_trunk(self, group: BranchGroup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A group's queries, those of one key head together, and their trunk. Shape [1, KV heads, …, D]."""
        of_trunk, q = _seen_places(group), self._query[:, :, _branch_places(group)]
        folded = q.reshape(1, self._key.shape[1], -1, q.shape[-1])
        return folded, self._key[:, :, of_trunk], self._value[:, :, of_trunk]

    def _flat(self, padded: torch.Tensor) -> torch.Tensor:
        """From [R, heads, T, D] to the branch tokens, [Q, heads, D]."""
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, self._layout.flat_Q)

    def _padded(self, row: torch.Tensor) -> torch.Tensor:
        """From the packed row, [1, heads, S, D], to its branches, [R, heads, T, D]."""
        flat = _tokens(row).index_select(0, self._places_RT.flatten())
        return flat.view(*self._places_RT.shape, *flat.shape[1:]).transpose(1, 2)


def _tokens(row: torch.Tensor) -> torch.Tensor:
    """A view of the packed row, [1, heads, S, D], by token: [S, heads, D]."""
    return row[0].transpose(0, 1)


def _trunk(query: Any, key: Any, value: Any, trunk: Trunk) -> tuple[torch.Tensor, ...]:
    """A trunk by itself, keys and values repeated for all heads. Shape [1, heads, T, D] each."""
    heads, at = query.shape[1], _places(trunk)
    return tuple(_for_heads(tensor[:, :, at], heads) for tensor in (query, key, value))


def _places(trunk: Trunk) -> slice:
    return slice(trunk.start, trunk.start + trunk.length)


def _seen_places(group: BranchGroup) -> slice:
    return slice(group.trunk.start, group.trunk.start + group.index)


def _branch_places(group: BranchGroup) -> slice:
    return slice(group.place, group.place + group.end - group.start)


def _for_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    repeats = heads // tensor.shape[1]
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 1)


def _of_kv_heads(grad: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The gradient of keys or values from that of their repetitions."""
    if grad.shape[1] == kv_heads:
        return grad
    return grad.reshape(len(grad), kv_heads, -1, *grad.shape[2:]).sum(2)


def _unfolded(of_group: torch.Tensor, part: slice) -> torch.Tensor:
    """From [1, KV heads, queries of one key head, D] to a group's tokens, [tokens, heads, D]."""
    num_tokens, width = part.stop - part.start, of_group.shape[-1]
    return of_group.reshape(-1, num_tokens, width).transpose(0, 1)


def _folded(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """A group's mask for the queries of one key head together."""
    return None if mask is None else mask.repeat(query.shape[2] // len(mask), 1)
