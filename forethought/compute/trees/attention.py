"""Attention over packed trees, through transformers' attention interface and without a change to any model.

    on a GPU     one kernel, FlexAttention                             flex_attention.py
    on a CPU     a trunk as ever, branches in two parts                branch_attention.py
    otherwise    explicit scores: soft caps and sinks on a CPU, a      explicit_attention.py
                 GPU without Triton, heads wider than 256

Design: each computes the same function, and which one follows from the device and the heads alone. A model
that computes its attention elsewhere, or with masks of its own, is not changed by any of this, which the
check at load finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from forethought.compute.trees.branch_attention import split_attention
from forethought.compute.trees.explicit_attention import explicit_attention
from forethought.compute.trees.flex_attention import flex_takes, flex_tree_attention
from forethought.compute.trees.layout import TreeLayout
from forethought.compute.trees.mask import TreeMask
from forethought.compute.trees.visible_keys import MaskFunction

NAME = "forethought_tree"
"""In transformers' registries of attention and mask functions."""


@dataclass(slots=True)
class _Attending:
    """The layout of a forward pass, and how many layers have followed it."""

    layout: TreeLayout
    num_layers: int = 0


_current: ContextVar[_Attending] = ContextVar("attending")


@contextmanager
def attending_trees(model: Any, layout: TreeLayout) -> Iterator[None]:
    """Have a model's attention follow the layout in a forward pass within this context.

    Raises:
        TypeError: the model computes all its attention elsewhere.
    """
    attending = _Attending(layout)
    token = _current.set(attending)
    try:
        with attention_named(model, NAME):
            yield
    finally:
        _current.reset(token)
    if not attending.num_layers:  # a small difference could pass for the rounding of bfloat16
        raise TypeError("this model has no attention that can be replaced")


@contextmanager
def attention_named(model: Any, name: str) -> Iterator[None]:
    """Have a model use a registered attention function within this context.

    Raises:
        TypeError: the model's attention cannot be replaced.
    """
    if not model._can_set_attn_implementation():  # it would only warn
        raise TypeError("this model computes its attention elsewhere")
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def tree_mask(*_: Any, mask_function: MaskFunction, dtype: torch.dtype, **__: Any) -> TreeMask:
    """transformers' mask interface: what the model's own mask allows, with the layout."""
    return TreeMask(_current.get().layout, mask_function, dtype)


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
    if _counts_places(module):
        raise TypeError("this model's attention counts tokens by their place in the row")
    if attending := _current.get(None):  # None while decoding
        attending.num_layers += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if flex_takes(query, value):
        out = flex_tree_attention(query, key, value, attention_mask, scale, softcap, s_aux)
    elif query.device.type == "cpu" and softcap is None and s_aux is None:
        out = split_attention(query, key, value, attention_mask, scale)
    else:
        out = explicit_attention(query, key, value, attention_mask, scale, softcap, s_aux)
    return out.transpose(1, 2).contiguous(), None  # some models view what they get


def _counts_places(module: Any) -> bool:
    """Whether a layer takes a token's place for its position, as Llama 4 does beyond 8,192 tokens."""
    is_tuned = getattr(module, "attn_temperature_tuning", False)
    return bool(is_tuned) and not getattr(module, "use_rope", True)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)
