"""Bytes of tokens: what their names spell, corrected by what they decode to."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast as FastTokenizer

from forethought.corpus.token_bytes import (
    decoded_vocabulary,
    vocabulary_bytes,
    without_inserted_space,
)
from forethought.corpus.token_decoder import TokenDecoder
from tests import tiny

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def gemma_style(decoder: Any = None) -> Any:
    """Spaces are replaced by ``▁`` in a normalizer; runs of them are added tokens, in the model too."""
    words = ["<unk>", "<bos>", *BYTE_TOKENS, "▁", "a", "b", "é", "▁a", "▁▁", "▁▁▁"]
    merges = [("▁", "a"), ("▁", "▁"), ("▁▁", "▁")]
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoder or decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    runs = [AddedToken(run, normalized=False, special=False) for run in ("▁▁", "▁▁▁")]
    core.add_tokens(runs)
    return FastTokenizer(tokenizer_object=core, unk_token="<unk>", bos_token="<bos>")


def pieces(tokenizer: Any, *tokens: str) -> list[bytes]:
    found = decoded_vocabulary(tokenizer)
    assert found is not None
    return [found[tokenizer.convert_tokens_to_ids(token)] for token in tokens]


def test_an_added_token_is_spelled_as_it_decodes() -> None:
    tokenizer = gemma_style()
    assert pieces(tokenizer, "▁▁", "▁▁▁", "▁a", "é", "<0x0A>", "<0xC3>") == [
        b"  ", b"   ", b" a", "é".encode(), b"\n", b"\xc3",
    ]  # fmt: skip
    text = "a  b   b\naé日"
    sizes = vocabulary_bytes(tokenizer)
    assert sizes is not None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("▁▁") in ids
    assert sum(sizes[i] for i in ids) == len(text.encode())
    assert TokenDecoder(tokenizer).decode(ids).text == text.encode()


def test_a_byte_token_without_a_byte_fallback_is_its_name() -> None:
    """What reads like a byte is six characters where the decoder leaves it alone."""
    assert pieces(gemma_style(decoders.Metaspace(prepend_scheme="never")), "<0x0A>", "▁a") == [
        b"<0x0A>",
        b" a",
    ]


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_decoders_that_strip_the_ends_of_a_text_keep_a_tokens_space(scheme: str) -> None:
    llama = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    for decoder in (
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]),
        decoders.Sequence([*llama, decoders.Strip(" ", 1, 0)]),
    ):
        assert pieces(gemma_style(decoder), "▁", "▁a", "▁▁", "<0x20>") == [b" ", b" a", b"  ", b" "]


def test_another_replacement_character_is_read_from_the_decoder() -> None:
    core = Tokenizer(models.BPE({"_": 0, "a": 1, "_a": 2, "▁": 3}, [("_", "a")]))
    core.pre_tokenizer = pre_tokenizers.Metaspace("_", prepend_scheme="never")
    core.decoder = decoders.Metaspace("_", prepend_scheme="never")
    assert pieces(FastTokenizer(tokenizer_object=core), "_a", "▁") == [b" a", "▁".encode()]


def test_byte_level_added_tokens_are_literal_unless_they_decode_to_other_text() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(["   ", "é", "日本", "Ġthe", "<|x|>"])
    assert pieces(tokenizer, "   ", "é", "日本", "<|x|>", "Ã", "Ġthe") == [
        b"   ", "é".encode(), "日本".encode(), b"<|x|>", b"\xc3", b" the",
    ]  # fmt: skip
    ids = tokenizer("a   é日本\té日", add_special_tokens=False)["input_ids"]
    assert TokenDecoder(tokenizer).decode(ids).text == "a   é日本\té日".encode()


def test_ids_without_a_token_have_no_bytes() -> None:
    core = Tokenizer(models.BPE({"a": 0, "b": 7, "▁": 3}, []))
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    assert decoded_vocabulary(FastTokenizer(tokenizer_object=core)) == (
        b"a", b"", b"", b" ", b"", b"", b"", b"b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "text", "expected"),
    [
        ([2, 1], "ab", [1, 1]),
        ([1, 2], "ab", [0, 2]),
        ([2, 1], " ab", [2, 1]),
        ([1, 1], "ab", [1, 1]),
        ([3, 1], "ab", [3, 1]),  # a normaliser's work, not a space
        ([], "", []),
    ],
)
def test_an_inserted_space_is_no_byte(sizes: list[int], text: str, expected: list[int]) -> None:
    assert without_inserted_space(sizes, text) == expected
