"""Windows of tokenizers that put special tokens around a text: no BOS in them, end-of-text at the end."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forethought import objectives
from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.mixture import open_corpus
from forethought.corpus.sources import open_source
from forethought.corpus.token_decoder import TokenDecoder
from forethought.corpus.windows import cut_windows
from forethought.special_tokens import Choice, choose_bos
from tests import tiny


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = tiny.build_tokenizer()
    tokenizer.bos_token = tiny.EOS
    choose_bos(tokenizer, "always")
    return tokenizer


def windows(
    folder: Path, tokenizer: Any, records: list[dict[str, Any]], eos: Choice = "tokenizer"
) -> Any:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceSection(path=str(path), prompt_field="ask")
    return cut_windows(open_source(source, folder / "c"), tokenizer, 8, 1, folder / "c", eos)


def test_windows_hold_no_bos_and_everything_moves_with_it(tmp_path: Path, tokenizer: Any) -> None:
    plain, begun = "abcdefghij", "<eos>abcdefghij"
    records = [
        {"text": plain, "marks": [0, 9]},
        {"text": begun, "marks": [0, 5, 14]},  # the first is the BOS itself
        {"text": "cdefgh", "ask": "<eos>ab"},
    ]
    rows = list(windows(tmp_path, tokenizer, records))
    ids = list(tokenizer(plain, add_special_tokens=False)["input_ids"])
    for first, rest in (rows[:2], rows[2:4]):
        assert first["token_ids"] + rest["token_ids"] == ids
        assert first["token_bytes"] + rest["token_bytes"] == [1] * 10
        assert (first["marks"], rest["marks"]) == ([0], [1])
    assert (rows[4]["token_ids"], rows[4]["prompt_tokens"]) == (ids[:8], 2)


def test_ids_that_were_tokenised_with_a_bos(tmp_path: Path, tokenizer: Any) -> None:
    ids = tokenizer("abc")["input_ids"]
    records = [{"token_ids": ids, "marks": [0, 1, 3], "entropies": [0.0, 1.0, 2.0, 3.0]}]
    (row,) = windows(tmp_path, tokenizer, records, "always")
    assert (row["token_ids"], row["entropies"], row["marks"]) == (ids[1:], [1.0, 2.0, 3.0], [0, 2])


def test_end_of_text_ends_documents_and_not_windows(tmp_path: Path) -> None:
    tokenizer = tiny.build_tokenizer()
    records = [{"text": "abcdefghij"}, {"text": "ab", "ask": "c"}]
    assert [r["token_ids"][-1] for r in windows(tmp_path, tokenizer, records)].count(
        tiny.EOS_ID
    ) == 0
    first, rest, worked = windows(tmp_path, tokenizer, records, "always")
    assert tiny.EOS_ID not in first["token_ids"]
    assert (len(rest["token_ids"]), rest["token_ids"][-1]) == (3, tiny.EOS_ID)
    assert sum(rest["token_bytes"]) == len("ij" + tiny.EOS)
    assert (len(worked["token_ids"]), worked["prompt_tokens"]) == (4, 1)


def test_a_convention_of_its_own_gives_windows_of_its_own(tmp_path: Path) -> None:
    records = [{"text": "<eos>ab"}]
    found = []
    for bos in ("tokenizer", "always"):
        for eos in ("tokenizer", "always"):
            tokenizer = tiny.build_tokenizer()
            tokenizer.bos_token = tiny.EOS
            choose_bos(tokenizer, bos)
            (row,) = windows(tmp_path, tokenizer, records, eos)
            found.append(len(row["token_ids"]))
    assert found == [3, 4, 2, 3]


def test_an_answer_is_graded_without_its_end(tmp_path: Path) -> None:
    """The question's truth is what a prediction that stops at end-of-text can be equal to."""
    section = CorpusSection(
        sources=(SourceSection(path=str(tmp_path / "a.jsonl"), prompt_field="ask"),), eos="always"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"ask": "3+4=", "text": "7"}) + "\n")
    tokenizer = tiny.build_tokenizer()
    (document,) = open_corpus(section, tokenizer, 0, tmp_path / "c").take(1)
    rlvr = objectives.load("rlvr", {"prompt": "plain", "verifier": "exact"})
    (position,) = rlvr.positions(document, Random(0))
    after = slice(position.index, None)
    truth = TokenDecoder(tokenizer).ground_truth(
        document.token_ids_N[after], document.token_bytes_N[after], without_end=rlvr.prediction_ends
    )
    assert (truth.text, truth.ends) == (b"7", (1,))
