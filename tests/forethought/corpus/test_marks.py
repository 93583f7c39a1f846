"""Marked tokens: what a pattern marks in texts, prompts, token ids and windows. Real tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.mixture import open_corpus

NUMBERS = "[0-9]+"
TEXT = "It cost 18 dollars, not 7. ½ of 18 is 9 and 1050 more."
VOCABULARY = ["cost", " 1", " 18", "05", " of", " is", "0 "]


def byte_level(trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ``VOCABULARY`` beside the bytes: numbers with a space, and of several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [text.replace(" ", "Ġ") for text in VOCABULARY]
    merges = [(name[:i], name[i]) for name in names for i in range(1, len(name))]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if trim_offsets:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end-7>")


def words() -> PreTrainedTokenizerFast:
    """A vocabulary that does not define what stands between tokens."""
    known = ["<unk>", "cost", "18", "dollars", "1", "8"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def marked(
    folder: Path, tokenizer: Any, record: dict[str, Any], pattern: str, **fields: Any
) -> list[tuple[bool, int]]:
    """Every token of one record, in order, with whether it is marked."""
    path = folder / "corpus.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    window_tokens = fields.pop("window_tokens", 999)
    source = SourceSection(path=str(path), marks_pattern=pattern, **fields)
    section = CorpusSection(
        sources=(source,), window_tokens=window_tokens, min_window_tokens=1, eos="never"
    )
    corpus = open_corpus(section, tokenizer, 0, folder / "cache")
    documents = sorted(
        corpus.take(corpus.num_windows), key=lambda d: int(d.document_id.split(":")[-1])
    )
    return [(i in d.marks, token) for d in documents for i, token in enumerate(d.token_ids_N)]


def names(tokenizer: Any, tokens: list[tuple[bool, int]]) -> list[str]:
    return [tokenizer.decode([token]) for is_marked, token in tokens if is_marked]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_every_token_with_part_of_a_match_is_marked(tmp_path: Path, trim_offsets: bool) -> None:
    """One token with its leading space, a number of several tokens, one that ends in a space."""
    tokenizer = byte_level(trim_offsets)
    found = marked(tmp_path, tokenizer, {"text": TEXT}, NUMBERS)
    assert names(tokenizer, found) == [" 18", "7", " 18", "9", " 1", "05", "0 "]
    assert [token for _, token in found] == tokenizer(TEXT)["input_ids"]


def test_a_lookbehind_marks_only_where_a_number_begins(tmp_path: Path) -> None:
    tokenizer = byte_level()
    found = marked(tmp_path, tokenizer, {"text": TEXT}, "(?<![0-9])[0-9]")
    assert names(tokenizer, found) == [" 18", "7", " 18", "9", " 1"]


@pytest.mark.parametrize("window_tokens", [1, 5, 999])
@pytest.mark.parametrize("make", [byte_level, words])
def test_ids_are_matched_as_their_text(tmp_path: Path, make: Any, window_tokens: int) -> None:
    """Also a number across two windows, and characters of several tokens before it."""
    tokenizer = make()
    text = TEXT if make is byte_level else "cost 18 dollars 1 8 nothing"
    ids = tokenizer(text)["input_ids"]
    whole = marked(tmp_path, tokenizer, {"text": text}, NUMBERS)
    cut = marked(tmp_path, tokenizer, {"token_ids": ids}, NUMBERS, window_tokens=window_tokens)
    assert cut == whole
    assert sum(is_marked for is_marked, _ in whole) == (7 if make is byte_level else 3)


def test_special_tokens_and_half_characters_of_ids_are_no_text(tmp_path: Path) -> None:
    tokenizer = byte_level()
    half = tokenizer("½7")["input_ids"][1:]
    ids = [*half, tokenizer.eos_token_id, *half]
    found = marked(tmp_path, tokenizer, {"token_ids": ids}, NUMBERS)
    assert [is_marked for is_marked, _ in found] == [False, True, False, False, True]


def test_the_text_is_matched_and_not_its_prompt(tmp_path: Path) -> None:
    """``^`` is the start of the text, and a prompt's number stays unmarked."""
    tokenizer, record = byte_level(), {"question": "18 and 7? ", "text": "9 of 18 is 1050"}
    fields = {"prompt_field": "question"}
    found = marked(tmp_path, tokenizer, record, NUMBERS, **fields)
    assert names(tokenizer, found) == ["9", " 18", " 1", "05", "0"]
    first = marked(tmp_path, tokenizer, record, f"^{NUMBERS}", **fields)
    assert names(tokenizer, first) == ["9"]


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "parquet"])
def test_every_kind_of_file_is_marked(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, tokenizer = tmp_path / f"a.{suffix}", byte_level()
    if suffix == "parquet":
        pq.write_table(pa.table({"text": [TEXT]}), path)
    else:
        path.write_text(TEXT if suffix == "txt" else json.dumps({"text": TEXT}), encoding="utf-8")
    source = SourceSection(path=str(path), marks_pattern="[0-9]{2,}")
    corpus = open_corpus(CorpusSection(sources=(source,)), tokenizer, 0, tmp_path / "cache")
    (document,) = corpus.take(1)
    marks = [tokenizer.decode([document.token_ids_N[i]]) for i in document.marks]
    assert marks == [" 18", " 18", " 1", "05", "0 "]


def test_marks_of_the_record_stay_and_another_pattern_cuts_again(tmp_path: Path) -> None:
    tokenizer, record = byte_level(), {"text": TEXT, "marks": [3]}
    assert names(tokenizer, marked(tmp_path, tokenizer, record, "")) == ["cost"]
    assert names(tokenizer, marked(tmp_path, tokenizer, record, "7")) == ["cost", "7"]
    assert names(tokenizer, marked(tmp_path, tokenizer, record, "9")) == ["cost", "9"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("[0-9", "no regular expression: unterminated"), ("[0-9]*", "matches the empty text")],
)
def test_a_pattern_that_cannot_mark_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceSection(path="a.txt", marks_pattern=pattern)
