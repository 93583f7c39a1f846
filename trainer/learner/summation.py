"""Sums of gradients over a micro-batch's tokens in float32, where PyTorch sums in the parameter's dtype.

Three gradients are added up token by token in the parameter's dtype: on a CPU those of an embedding row and
of a layer norm's parameters, everywhere those of a parameter that is indexed by token, as the biases of
experts are. In bfloat16 such a sum stands still at 256 equal summands: 8,192 x 1e-4 gives 0.031.
Matrix products, convolutions and plain reductions, of which other biases and RMS norms are made, add up in
float32 and round once.

Design: the functions are intercepted where they are called, so that subclasses and custom code are
covered and no module is changed; their outputs are bit for bit the same. The price is a call into Python
for every operation of a forward pass, which is why the mode is entered only for such a model, and a float32
copy of an indexed parameter. What a loop over tokens makes of a parameter before it (RWKV's decay) is out
of reach: autograd adds up its uses in the dtype they have, so such a model is to compute in float32.
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
    is_at_risk = any(_is_at_risk(name, one) for name, one in model.named_parameters())
    return _Float32Sums() if is_at_risk else nullcontext()


def _is_at_risk(name: str, parameter: torch.Tensor) -> bool:
    """On a GPU only stacked biases are, those of experts: one by one is how they are indexed."""
    is_stacked_bias = name.endswith("bias") and parameter.ndim > 1
    return parameter.dtype.itemsize < 4 and (parameter.device.type == "cpu" or is_stacked_bias)


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
    fixed = [None if one is None else one.detach() for one in (weight, bias)]
    output = functional.layer_norm(input, normalized_shape, fixed[0], fixed[1], eps)
    if weight is None and bias is None:
        return output
    scaled = functional.layer_norm(input.detach(), normalized_shape, None, None, eps)
    scaled = scaled if weight is None else scaled * weight
    scaled = scaled if bias is None else scaled + bias
    return output + (scaled - scaled.detach())


def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """A parameter is indexed as float32, so that the rows' gradients meet in float32."""
    is_parameter = tensor.is_leaf and tensor.requires_grad and tensor.dtype.itemsize < 4
    if not (is_parameter and tensor.is_floating_point() and _repeats(index)):
        return tensor[index]
    return tensor.float()[index].to(tensor.dtype)


def _repeats(index: Any) -> bool:
    """Whether an index can name a row more than once."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, list) or (isinstance(part, torch.Tensor) and part.ndim > 0)
        for part in parts
    )


_INTERCEPTED: dict[Any, Callable[..., torch.Tensor]] = {
    functional.embedding: _embedding,
    functional.layer_norm: _layer_norm,
    torch.Tensor.__getitem__: _getitem,
}
