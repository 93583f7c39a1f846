"""Weights as published: named tensors of a model, to and from safetensors.

Design: tied parameters travel once, under their first name, and nothing is applied before every name,
shape and dtype was found to fit, so a foreign snapshot is refused whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from forethought.errors import InvalidInput


def named_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and persistent buffer once, by name, sharing memory with the model."""
    tensors = {name: parameter.data for name, parameter in model.named_parameters()}
    transient = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    buffers = model.named_buffers()
    return tensors | {name: buffer for name, buffer in buffers if name not in transient}


def serialise(tensors: dict[str, torch.Tensor]) -> bytes:
    """The safetensors payload of named tensors."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(flat, metadata={"format": "pt"})


def apply_weights(model: Any, file: Path) -> None:
    """Copy a safetensors file into a model, all of it or nothing.

    Raises:
        InvalidInput: a tensor is missing, unknown, or of another shape or dtype.
    """
    pushed, held = load_file(str(file)), named_weights(model)
    faults = [f"{name} is missing" for name in sorted(held.keys() - pushed.keys())]
    faults += [f"{name} is unknown" for name in sorted(pushed.keys() - held.keys())]
    faults += [
        f"{name} is {_kind(pushed[name])}, expected {_kind(held[name])}"
        for name in sorted(held.keys() & pushed.keys())
        if _kind(pushed[name]) != _kind(held[name])
    ]
    if faults:
        raise InvalidInput(f"weights do not fit the model: {'; '.join(faults[:5])}")
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(pushed[name])


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
