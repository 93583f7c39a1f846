"""Model directories that need more than their weights: other libraries, other versions, a text part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from forethought.compute.model import (
    add_markers,
    check_model_files,
    load_language_model,
    load_tokenizer,
    text_config,
)
from forethought.errors import InvalidInput
from tests import tiny

Damage = Callable[[Path], object]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny.build_model_directory(tmp_path / "model")


def edit_json(name: str, **values: Any) -> Damage:
    def damage(directory: Path) -> None:
        file = directory / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(content)


def quantized(method: str, **given: Any) -> Damage:
    return edit_json("config.json", quantization_config={"quant_method": method, **given})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            quantized("bitsandbytes", load_in_4bit=True),
            "needs a library that is not installed: .*bitsandbytes",
        ),
        (quantized("gptq", bits=4), "needs a library that is not installed: .*optimum"),
        (
            write("generation_config.json", b'{"temperature": 0.7}'),
            "cannot be saved again.*do_sample",
        ),
        (edit_json("config.json", hidden_size="32"), "got str"),
        (edit_json("config.json", num_attention_heads=0), "modulo by zero"),
    ],
    ids=["bitsandbytes", "gptq", "generation", "type", "no-heads"],
)
def test_what_the_libraries_raise_is_one_line_with_and_without_weights(
    directory: Path, damage: Damage, words: str
) -> None:
    """``doctor`` finds it without loading weights; a later process would have died in a traceback."""
    damage(directory)
    for load in (check_model_files, lambda path: load_language_model(path, "float32", "cpu")):
        with pytest.raises(InvalidInput, match=words) as refused:
            load(directory)
        assert "\n" not in str(refused.value)
        assert str(directory) in str(refused.value)


def test_a_tokenizer_of_another_version_is_refused_with_the_version_here(directory: Path) -> None:
    edit_json("tokenizer.json", pre_tokenizer={"type": "OfALaterVersion"})(directory)
    with pytest.raises(InvalidInput, match=r"no tokenizer in .*readable by tokenizers \d+\."):
        load_tokenizer(directory)


def test_a_sound_directory_passes_without_its_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    write("generation_config.json", b'{"temperature": 0.7, "do_sample": true}')(directory)
    check_model_files(directory)


@pytest.fixture
def composite(tmp_path: Path) -> Path:
    """A Gemma 3 of text and images: its sizes are in the text part of its configuration."""
    text = {
        "vocab_size": tiny.VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": tiny.MAX_LENGTH_TOKENS, "sliding_window": 16, "pad_token_id": None,
        "eos_token_id": tiny.EOS_ID, "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny.build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_the_length_of_a_composite_model_is_that_of_its_text_part(composite: Path) -> None:
    """It counted as unlimited, and positions beyond the model's own failed or gave nonsense."""
    check_model_files(composite)
    loaded = load_language_model(composite, "float32", "cpu")
    assert loaded.max_length_tokens == tiny.MAX_LENGTH_TOKENS
    assert text_config(loaded.model.config).hidden_size == 32
    add_markers(loaded, "<more>", "</more>")
    assert loaded.model(torch.tensor([[1, tiny.VOCAB_SIZE]])).logits.shape[-1] == len(
        loaded.tokenizer
    )
