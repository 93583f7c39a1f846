"""Weights are published as ``save_pretrained`` writes them, and read as ``from_pretrained`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from forethought.compute.weights import apply_weights, as_saved, named_weights, serialise
from forethought.errors import InvalidInput
from tests import architectures

CONVERTED = [
    "gpt_neox", "mixtral", "qwen3_moe", "deepseek_v3", "granitemoehybrid", "jamba", "minimax",
    "nemotron_h", "qwen3_next",
]  # fmt: skip
"""Held by transformers under other names, or with the experts of a layer in one tensor."""
PLAIN = ["llama", "gpt2", "gpt_oss", "bamba", "mamba"]


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def changed(model: Any) -> Any:
    """Every parameter is another one afterwards."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) / 8)
    return model


def published(model: Any) -> bytes:
    return serialise(as_saved(model, named_weights(model)))


def are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


@pytest.mark.parametrize("name", CONVERTED + PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_published_is_what_save_pretrained_writes_and_applies_bit_for_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    held, saved, pushed = (tmp_path / folder for folder in ("held", "saved", "pushed"))
    architectures.build_directory(held, name)
    source, target = changed(load(held, dtype)), load(held, dtype)
    source.save_pretrained(saved)
    source.save_pretrained(pushed)
    (pushed / "model.safetensors").write_bytes(published(source))
    written = load_file(saved / "model.safetensors")
    assert are_equal(load_file(pushed / "model.safetensors"), written)
    assert (written.keys() != named_weights(source).keys()) is (name in CONVERTED)
    parameters = dict(target.named_parameters())
    apply_weights(target, pushed / "model.safetensors")
    assert are_equal(named_weights(target), named_weights(source))
    now = dict(target.named_parameters())
    assert all(now[name] is parameter for name, parameter in parameters.items()), "in place"


@pytest.mark.parametrize("name", PLAIN)
def test_models_held_as_they_are_saved_are_published_without_a_copy(
    name: str, tmp_path: Path
) -> None:
    model = load(architectures.build_directory(tmp_path, name))
    held = named_weights(model)
    assert as_saved(model, held).keys() == held.keys()
    assert all(
        one.data_ptr() == held[name].data_ptr() for name, one in as_saved(model, held).items()
    )


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral"])
def test_weights_under_the_names_in_memory_are_refused_as_a_whole(
    name: str, tmp_path: Path
) -> None:
    model = load(architectures.build_directory(tmp_path, name))
    before = {name: tensor.clone() for name, tensor in named_weights(model).items()}
    file = tmp_path / "pushed.safetensors"
    file.write_bytes(serialise(named_weights(changed(load(tmp_path)))))
    with pytest.raises(InvalidInput, match=r"do not fit the model: .* is missing"):
        apply_weights(model, file)
    assert are_equal(named_weights(model), before)
