"""Published weights: named tensors of a model, to and from safetensors.

Design: what is published is what ``save_pretrained`` writes, bit for bit and name by name. transformers
holds some models in another form than their files: all experts of a layer in one tensor, parameters under
new names. Other libraries read the form of the files, so a snapshot has it too, and receivers convert as
``from_pretrained`` does. The price, for such models alone: converted tensors are copied once more on either
side.

Tied parameters are included once, under their first name, and nothing is applied before every name,
shape and dtype has been checked, so a snapshot of a different model is refused as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from transformers.core_model_loading import revert_weight_conversion

from forethought.compute.model import ONE_LOAD_AT_A_TIME
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


def as_saved(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors named as in the model, under the names and in the shapes that ``save_pretrained`` writes.

    A model whose names and shapes are those of its files gets its own tensors back; of others, the
    converted ones are copies on the CPU.
    """
    if not _converts(model):
        return tensors
    held = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    saved: dict[str, torch.Tensor] = revert_weight_conversion(model, held)
    return saved


def serialise(tensors: dict[str, torch.Tensor]) -> bytes:
    """The safetensors payload of named tensors."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(flat, metadata={"format": "pt"})


def apply_weights(model: Any, file: Path) -> None:
    """Copy a published file, ``model.safetensors`` of its directory, into a model, all or nothing.

    Raises:
        InvalidInput: a tensor is missing, unknown, or of another shape or dtype.
    """
    held = named_weights(model)
    check_fit(layout_of(file), _saved_layout(model, held))
    pushed = _converted(model, file) if _converts(model) else load_file(str(file))
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


def _converts(model: Any) -> bool:
    """Whether files of this model may have other names or shapes: unknown of one that was not loaded."""
    return bool(getattr(model, "_weight_conversions", True))


def _saved_layout(model: Any, held: dict[str, torch.Tensor]) -> dict[str, str]:
    """The dtype and shape of every tensor that ``save_pretrained`` would write, without any memory."""
    if not _converts(model):
        return _kinds(held)
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in held.items()}
    return _kinds(revert_weight_conversion(model, shapes))


def _converted(model: Any, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a published file in the model's own form, on the CPU."""
    with ONE_LOAD_AT_A_TIME:
        fresh = type(model).from_pretrained(
            file.parent, config=model.config, dtype=model.dtype, local_files_only=True
        )
    return named_weights(fresh)


def _kinds(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: _kind(tensor) for name, tensor in tensors.items()}


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
