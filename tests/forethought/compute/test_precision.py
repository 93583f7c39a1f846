"""What ``model.dtype = auto`` stands for: by the model, the device, and a measurement."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forethought.compute import model as models
from forethought.compute import precision
from forethought.compute.model import load_language_model, precision_of, stored_dtype
from forethought.compute.policy import planned_precision
from forethought.compute.precision import Precision, choose_precision, product_speedup, slowness
from forethought.config import load_settings
from forethought.config.sections import ModelSection
from tests import architectures, tiny

CPU = torch.device("cpu")


def config(hidden_size: int | None = 576, model_type: str = "llama") -> Any:
    return SimpleNamespace(hidden_size=hidden_size, model_type=model_type)


def never(hidden_size: int) -> float:
    raise AssertionError("measured, though it is decided")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_given_type_is_taken(dtype: str) -> None:
    assert choose_precision(dtype, config(), CPU, never) == Precision(dtype, "as configured")


@pytest.mark.parametrize(
    ("speedup", "dtype", "reason"),
    [
        (None, "float32", "this processor has no bfloat16"),
        (0.4, "float32", "bfloat16 products run at 0.4x the speed here"),
        (1.29, "float32", "bfloat16 products run at 1.3x the speed here"),
        (5.3, "bfloat16", "matrix products are 5x faster here"),
    ],
)
def test_a_processor_is_measured_at_the_models_width(
    speedup: float | None, dtype: str, reason: str
) -> None:
    measured = []

    def measure(hidden_size: int) -> float | None:
        measured.append(hidden_size)
        return speedup

    assert choose_precision("auto", config(), CPU, measure) == Precision(dtype, reason)
    assert measured == [576]


@pytest.mark.parametrize("hidden_size", [None, 0, 64, 255])
def test_a_small_model_is_decided_by_its_size(hidden_size: int | None) -> None:
    """Its products may be faster and its steps are not; nothing is left to the clock."""
    assert choose_precision("auto", config(hidden_size), CPU, never).dtype == "float32"


def test_models_whose_loops_sum_in_their_own_type_stay_in_float32() -> None:
    assert choose_precision("auto", config(1024, "rwkv"), CPU, never).dtype == "float32"


def test_a_device_of_unknown_abilities_computes_in_float32() -> None:
    found = choose_precision("auto", config(), torch.device("meta"), never)
    assert found == Precision("float32", "bfloat16 is not known to be faster on meta")


@pytest.mark.parametrize(("capable", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_asked_for_native_support(
    capable: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for emulation, which every GPU has."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    asked = []

    def supported(including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return capable

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", config(), torch.device("cuda:0"), never).dtype == dtype
    assert asked == [False]


def test_a_processor_without_the_instructions_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True})
    assert product_speedup(512) is None
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert (product_speedup(512) or 0) > 0
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch: the clock decides
    assert (product_speedup(512) or 0) > 0


@pytest.mark.parametrize(
    ("dtype", "hidden_size", "speedup", "says"),
    [
        (
            "bfloat16",
            576,
            None,
            r"slow here \(this processor has no bfloat16\); set model.dtype=float32",
        ),
        ("bfloat16", 576, 0.4, "0.4x the speed"),
        ("bfloat16", 576, 1.1, "^$"),
        ("bfloat16", 64, 0.4, "^$"),
        ("float32", 576, 0.4, "^$"),
    ],
)
def test_a_type_chosen_elsewhere_may_be_slow_here(
    dtype: str, hidden_size: int, speedup: float | None, says: str
) -> None:
    assert re.search(says, slowness(dtype, config(hidden_size), CPU, lambda size: speedup))


def test_measuring_leaves_the_process_as_it_was() -> None:
    """Its random generator initialises added embeddings and is part of checkpoints."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        product_speedup(64)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_is_the_default_and_unknown_types_are_not() -> None:
    assert ModelSection().dtype == "auto"
    with pytest.raises(ValueError, match="'auto', 'float32' or 'bfloat16'"):
        load_settings(None, ["model.dtype=float16"], {})


def test_a_small_model_loads_in_float32_from_either_type(tmp_path: Path) -> None:
    directory = tiny.build_model_directory(tmp_path / "model")
    loaded = load_language_model(directory, "bfloat16", "cpu")
    loaded.model.save_pretrained(directory)
    assert stored_dtype(directory) == "bfloat16"
    again = load_language_model(directory, "auto", "cpu")
    assert again.precision == precision_of(directory, "auto", "cpu")
    assert again.model.dtype == torch.float32


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that computes bfloat16 fast, and models that are all large enough."""
    monkeypatch.setattr(precision, "product_speedup", lambda hidden_size: 3.0)
    monkeypatch.setattr(precision, "_MIN_HIDDEN_SIZE", 1)


@pytest.mark.usefixtures("native")
def test_a_model_loads_in_what_was_chosen(tmp_path: Path) -> None:
    loaded = load_language_model(tiny.build_model_directory(tmp_path / "model"), "auto", "cpu")
    assert loaded.precision == Precision("bfloat16", "matrix products are 3x faster here")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("native")
def test_a_model_that_fails_in_bfloat16_loads_in_float32(tmp_path: Path) -> None:
    """xLSTM's code multiplies float32 with the weights' type."""
    directory = architectures.build_directory(tmp_path / "model", "xlstm")
    assert precision_of(directory, "auto", "cpu").dtype == "bfloat16"
    loaded = load_language_model(directory, "auto", "cpu")
    assert loaded.precision == Precision("float32", "bfloat16 fails")
    assert loaded.model.dtype == torch.float32
    with pytest.raises(models.InvalidInput, match="does not compute a row"):
        load_language_model(directory, "bfloat16", "cpu")


def test_a_plan_names_the_type_without_loading(tmp_path: Path) -> None:
    directory = tiny.build_model_directory(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    words = [f"model.path={directory}", f"run.directory={tmp_path / 'run'}"]
    found = planned_precision(load_settings(None, words, {}))
    assert found == Precision("float32", "bfloat16 gains nothing at hidden size 32")
