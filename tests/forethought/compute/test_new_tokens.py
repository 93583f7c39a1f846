"""New tokens: ids that no other token has, rows initialised although the embedding had them already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PhiConfig, PhiForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from forethought.compute.model import (
    LanguageModel,
    Markers,
    add_markers,
    find_markers,
    load_language_model,
)
from forethought.errors import InvalidInput
from tests import tiny

WORDS = {"<unk>": 0, "a": 1, "b": 2, "and": 4, "c": 6}  # 3 and 5 are holes
PADDED = 320  # rows of a vocabulary of 259 padded to a multiple of 64
UNTRAINED = 7.0


def word_tokenizer(words: dict[str, int] = WORDS) -> Any:
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return FastTokenizer(tokenizer_object=core, unk_token="<unk>")


def language_model(model: Any, tokenizer: Any) -> LanguageModel:
    return LanguageModel(model, tokenizer, tiny.MAX_LENGTH_TOKENS)


def tensors_by_row(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, *model.get_output_embeddings().parameters()]


@pytest.mark.parametrize("num_rows", [7, 8, 9, 16])
def test_markers_of_a_vocabulary_with_holes_get_ids_of_their_own(
    num_rows: int, tmp_path: Path
) -> None:
    loaded = language_model(tiny.build_model(), word_tokenizer())
    loaded.model.resize_token_embeddings(num_rows, mean_resizing=False)
    text = "a and b c"
    before = loaded.tokenizer(text)["input_ids"]
    add_markers(loaded, "<think>", "</think>")
    assert find_markers(loaded.tokenizer, "<think>", "</think>") == Markers((7,), (8,))
    assert loaded.tokenizer(text)["input_ids"] == before
    assert loaded.tokenizer("and <think> c</think>")["input_ids"] == [4, 7, 6, 8]
    assert loaded.model.get_input_embeddings().num_embeddings == max(9, num_rows)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    back = load_language_model(tmp_path, "float32", "cpu")
    assert find_markers(back.tokenizer, "<think>", "</think>") == Markers((7,), (8,))
    assert back.tokenizer.get_vocab() == {**WORDS, "<think>": 7, "</think>": 8}
    add_markers(back, "<think>", "</think>")  # a second time nothing is missing
    assert back.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


def test_a_missing_marker_beside_an_existing_one_and_added_tokens_with_holes() -> None:
    tokenizer = word_tokenizer(WORDS | {"<think>": 9})
    tokenizer.add_tokens([AddedToken("c"), AddedToken("<think>", special=True)])
    loaded = language_model(tiny.build_model(), tokenizer)
    add_markers(loaded, "<think>", "</think>")
    assert find_markers(loaded.tokenizer, "<think>", "</think>") == Markers((9,), (10,))
    assert sorted(set(tokenizer.get_vocab().values())) == [0, 1, 2, 4, 6, 9, 10]


def test_a_marker_that_shares_its_id_is_refused() -> None:
    """As a checkpoint has it whose markers the library added after a hole."""
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    with pytest.raises(InvalidInput, match="'</think>' and token 'c' are both id 6"):
        find_markers(tokenizer, "<think>", "</think>")


def test_holes_of_a_vocabulary_that_cannot_be_written_are_refused() -> None:
    class Slow:
        is_fast = False

        def get_vocab(self) -> dict[str, int]:
            return WORDS

    with pytest.raises(InvalidInput, match="the vocabulary of Slow has holes"):
        add_markers(language_model(tiny.build_model(), Slow()), "<think>", "</think>")


def with_padding(kind: str) -> Any:
    """A model with 320 rows for 259 tokens, the padding far from every trained row."""
    if kind == "phi":  # a head of its own with a bias
        torch.manual_seed(0)
        config = PhiConfig(
            vocab_size=tiny.VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=0,
        )  # fmt: skip
        model: Any = PhiForCausalLM(config).eval()
        torch.nn.init.normal_(model.lm_head.bias)
    else:
        model = tiny.build_model("llama" if kind == "untied" else "gpt2")
    model.resize_token_embeddings(PADDED, mean_resizing=False)
    with torch.no_grad():
        for tensor in tensors_by_row(model):
            tensor[tiny.VOCAB_SIZE :] = UNTRAINED
    return model


@pytest.mark.parametrize("kind", ["untied", "tied", "phi"])
def test_padded_rows_that_become_markers_are_initialised_like_appended_ones(kind: str) -> None:
    model = with_padding(kind)
    before = [tensor.detach().clone() for tensor in tensors_by_row(model)]
    add_markers(language_model(model, tiny.build_tokenizer()), "<thought>", "</thought>")
    first, end = tiny.VOCAB_SIZE, tiny.VOCAB_SIZE + 2
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == PADDED
    for old, new in zip(before, tensors_by_row(model), strict=True):
        torch.testing.assert_close(
            new[first:end], old[:first].mean(0).expand_as(new[first:end]), atol=1e-3, rtol=0
        )
        assert torch.equal(new[:first], old[:first])
        assert torch.equal(new[end:], old[end:])
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (kind == "tied")
    assert model(torch.tensor([[1, first]])).logits.shape[-1] == PADDED


def test_one_padded_row_for_two_markers(tmp_path: Path) -> None:
    model = with_padding("untied")
    model.resize_token_embeddings(tiny.VOCAB_SIZE + 1)
    loaded = language_model(model, tiny.build_tokenizer())
    add_markers(loaded, "<thought>", "</thought>")
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == tiny.VOCAB_SIZE + 2
    assert rows.abs().max() < UNTRAINED
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == rows.shape[0]
