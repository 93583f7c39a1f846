"""Sums of gradients over a micro-batch's tokens in float32, where PyTorch sums in the parameter's dtype.

On a CPU, the gradients of an embedding row and of a layer norm's parameters are added up token by token in
the parameter's dtype. In bfloat16 such a sum stands still at 256 equal summands: 8,192 x 1e-4 gives 0.031.
Matrix products and plain reductions, which RMS norms are made of, add up in float32 and round once.

Design: the two functions are intercepted where they are called, so that subclasses and custom code are
covered and no module is changed; their outputs are bit for bit the same. The price is a call into Python
for every operation of a forward pass, which is why the mode is entered only for such a model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def float32_sums(model: Any) -> AbstractContextManager[object]:
    """A context for the model's forward passes with gradient; without effect where no sum is at risk."""
    is_at_risk = any(p.device.type == "cpu" and p.dtype.itemsize < 4 for p in model.parameters())
    return _Float32Sums() if is_at_risk else nullcontext()


class _Float32Sums(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        intercepted = _INTERCEPTED.get(func)
        return intercepted(*args, **kwargs) if intercepted else func(*args, **kwargs)


def _embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    *options: Any,
    **named: Any,
) -> torch.Tensor:
    """Each distinct row is looked up once, and copied in float32 to where it occurs."""
    unique, inverse = input.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    rows = functional.embedding(unique, weight, padding_idx, *options, **named)
    return functional.embedding(inverse, rows.float()).to(weight.dtype)


def _layer_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """The kernel's output and input gradient; the parameters' gradients from a plain multiplication.

    The term added is 0: it carries a gradient and no value.
    """
    if weight is None:
        return functional.layer_norm(input, normalized_shape, weight, bias, eps)
    fixed = (weight.detach(), None if bias is None else bias.detach())
    output = functional.layer_norm(input, normalized_shape, *fixed, eps)
    scaled = functional.layer_norm(input.detach(), normalized_shape, None, None, eps) * weight
    scaled = scaled if bias is None else scaled + bias
    return output + (scaled - scaled.detach())


_INTERCEPTED: dict[Any, Callable[..., torch.Tensor]] = {
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
}
