"""Logits in float32 from a model whose weights are bfloat16 (ScaleRL, arXiv 2510.13786).

    logits = hidden.float() @ weight.float().T        instead of rounding each logit to 8 bits

Design: the output embedding itself is patched, so anything a model does with its logits afterwards
(scaling, soft caps) is unaffected. The setting is a flag in the model's configuration, which is part of
every snapshot and checkpoint: learner, scorer and torch engine cannot disagree about it, and only the
rounding of hidden states keeps the importance ratio of fresh samples from being exactly 1. The price is a
float32 copy of the output embedding during every forward pass. vLLM ignores the flag.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from forethought.errors import InvalidInput

FLAG = "forethought_fp32_head"
"""The key in the model's configuration."""


def set_fp32_head(model: Any, wanted: bool) -> None:
    """Set the float32-logits flag in the model's configuration, and apply it.

    Raises:
        InvalidInput: the model's output embedding is not a linear layer.
    """
    if wanted or hasattr(model.config, FLAG):
        setattr(model.config, FLAG, wanted)
    install_fp32_head(model)


def install_fp32_head(model: Any) -> None:
    """Apply the flag of the model's configuration.

    Raises:
        InvalidInput: the model's output embedding is not a linear layer.
    """
    head = model.get_output_embeddings()
    if not getattr(model.config, FLAG, False):
        if head is not None:
            vars(head).pop("forward", None)
        return
    if not isinstance(head, torch.nn.Linear):
        raise InvalidInput(
            f"model.fp32_head needs a linear output embedding, {type(model).__name__} has "
            f"{type(head).__name__}; set model.fp32_head=false"
        )

    # Bound to this head, so that a copied model's head gets a separate method.
    setattr(head, "forward", MethodType(_linear_in_float32, head))  # noqa: B010


def _linear_in_float32(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    bias = None if head.bias is None else head.bias.float()
    return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)
