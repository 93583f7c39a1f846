"""Published weights: named tensors of a model, to and from safetensors.

Design: tied parameters are included once, under their first name, and nothing is applied before every name,
shape and dtype has been checked, so a snapshot of a different model is refused as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from forethought.errors import InvalidInput

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I64": "int64"}


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
    """Copy a safetensors file into a model, all or nothing.

    Raises:
        InvalidInput: a tensor is missing, unknown, or of another shape or dtype.
    """
    pushed, held = load_file(str(file)), named_weights(model)
    check_fit(_kinds(pushed), _kinds(held))
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(pushed[name])


def layout_of(file: Path) -> dict[str, str]:
    """The dtype and shape of every tensor of a safetensors file, from its header only.

    Raises:
        InvalidInput: it is not a complete safetensors file.
    """
    try:
        with safe_open(str(file), framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: f"{_DTYPES.get(part.get_dtype(), part.get_dtype())}{list(part.get_shape())}"
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            f"{file.name} is not a safetensors file ({error}); push the snapshot again"
        ) from error


def check_fit(pushed: dict[str, str], held: dict[str, str]) -> None:
    """Check that pushed weights have exactly the names, shapes and dtypes of those held.

    Raises:
        InvalidInput: a tensor is missing, unknown, or of another shape or dtype.
    """
    faults = [f"{name} is missing" for name in sorted(held.keys() - pushed.keys())]
    faults += [f"{name} is unknown" for name in sorted(pushed.keys() - held.keys())]
    faults += [
        f"{name} is {pushed[name]}, expected {held[name]}"
        for name in sorted(held.keys() & pushed.keys())
        if pushed[name] != held[name]
    ]
    if faults:
        raise InvalidInput(f"weights do not fit the model: {'; '.join(faults[:5])}")


def _kinds(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: _kind(tensor) for name, tensor in tensors.items()}


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
