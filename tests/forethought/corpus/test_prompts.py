"""Prompts in a corpus: in the context of the text but not trained on, for SFT and mixed SFT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from forethought.compute.model import load_language_model
from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.mixture import Corpus, open_corpus
from forethought.corpus.token_decoder import decoder_of
from forethought.errors import InvalidInput
from tests import tiny
from trainer.batch.thought_tree import trees_of_documents
from trainer.learner.batching import micro_batches
from trainer.learner.loss import batch_loss, policy_logprobs

CHARACTERS = tiny.build_tokenizer()  # one token a byte


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def corpus_of(tmp_path: Path, *sources: SourceSection, window_tokens: int = 64) -> Corpus:
    section = CorpusSection(sources=sources, window_tokens=window_tokens, min_window_tokens=1)
    return open_corpus(section, CHARACTERS, 0, tmp_path / "cache")


def source(path: Path, **fields: Any) -> SourceSection:
    return SourceSection(name=path.stem, path=str(path), **{"prompt_field": "ask", **fields})


def test_a_prompt_precedes_its_text_and_has_no_weight(tmp_path: Path) -> None:
    path = write(tmp_path / "sft.jsonl", [{"ask": "2+2=", "text": "four", "marks": [1]}])
    (document,) = corpus_of(tmp_path, source(path)).take(1)
    assert CHARACTERS.decode(document.token_ids_N) == "2+2=four"
    assert document.nll_weights_N == (0.0,) * 4 + (1.0,) * 4
    assert document.marks == (5,)  # marks are offsets into the text


def test_a_record_without_a_prompt_is_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "sft.jsonl", [{"text": "four"}, {"ask": None, "text": "five"}])
    for document in corpus_of(tmp_path, source(path)).take(2):
        assert document.nll_weights_N == ()


def test_without_the_setting_such_a_field_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "sft.jsonl", [{"ask": "2+2=", "text": "four"}])
    (document,) = corpus_of(tmp_path, source(path, prompt_field="")).take(1)
    assert CHARACTERS.decode(document.token_ids_N) == "four"


def test_a_question_and_its_answer_are_used_whole_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut, half an answer is taught and graded against, and its rest has no question."""
    records = [
        {"ask": "q=", "text": "1234567890"},
        {"ask": "q=", "text": "123456"},  # exactly one window
        {"ask": "question=", "text": "1"},  # the question alone is longer
        {"ask": "q=", "text": ""},
        {"ask": "", "text": "text without a question"},
    ]
    path = write(tmp_path / "sft.jsonl", records)
    for _ in ("read", "from the cache"):
        caplog.clear()
        corpus = corpus_of(tmp_path, source(path), window_tokens=8)
        documents = corpus.take(corpus.num_windows)
        texts = {d.document_id: CHARACTERS.decode(d.token_ids_N) for d in documents}
        assert texts == {
            "sft.jsonl#1:0": "q=123456",
            "sft.jsonl#4:0": "text wit",
            "sft.jsonl#4:1": "hout a q",
            "sft.jsonl#4:2": "uestion",
        }
        assert (
            "of 4 documents from sft.jsonl#0 on, 2 longer than corpus.window_tokens=8 tokens were left "
            "out, because a question and its answer are never cut; raise it"
        ) in caplog.text


def test_a_source_of_which_every_answer_would_be_cut_is_refused_at_start(tmp_path: Path) -> None:
    path = write(tmp_path / "sft.jsonl", [{"ask": "q=", "text": "1234567890"}, {"text": "1"}])
    of_source = source(path)
    section = CorpusSection(sources=(of_source,), window_tokens=8, min_window_tokens=2)
    for _ in ("read", "from the cache"):
        with pytest.raises(InvalidInput, match=r"1 shorter than .*; 1 longer than .* raise it"):
            open_corpus(section, CHARACTERS, 0, tmp_path / "cache")


@pytest.mark.parametrize(
    ("asked", "answer"), [("sum: ", "1234"), ("sum:", "1234"), ("sum: 12", "34"), ("é 1", "2é")]
)
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_an_answer_is_whole_where_a_token_could_hold_its_start(
    tmp_path: Path, asked: str, answer: str, kind: str
) -> None:
    """A question that ends with a space would take `` 1234``, and leave RLVR nothing or a part to grade."""
    tokenizer = merging_tokenizer(kind)
    together = tokenizer(asked + answer, add_special_tokens=False)["input_ids"]
    path = write(tmp_path / "sft.jsonl", [{"ask": asked, "text": answer, "marks": [1]}])
    section = CorpusSection(sources=(source(path),), min_window_tokens=1)
    (document,) = open_corpus(section, tokenizer, 0, tmp_path / "cache").take(1)
    ids, sizes = document.token_ids_N, document.token_bytes_N
    first = document.nll_weights_N.index(1.0)
    truth = decoder_of(tokenizer).ground_truth(ids[first:], sizes[first:]).text.decode()
    assert truth.strip() == answer
    assert sum(sizes[:first]) == len(asked.encode())
    assert sum(sizes) == len((asked + answer).encode())
    assert document.marks[0] >= first
    if asked == "sum:":  # no token spans the boundary
        assert list(ids) == together


def merging_tokenizer(kind: str) -> Any:
    """Of bytes, with tokens for `` 1234``, ``1234`` and their beginnings."""
    space = "Ġ" if kind == "bytes" else "▁"
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else map(chr, range(33, 127))
    names = [*sorted(alphabet), *(f"<0x{i:02X}>" for i in range(256)), space]
    merges = [("1", "2"), ("3", "4"), ("12", "34"), (space, "1234"), (space, "12")]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys([*names, *map("".join, merges)]))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    else:
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        spaces, ends = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
        core.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), ends])
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"ask": "a", "token_ids": [5, 6]}, "expected text for both"),
        ({"ask": 7, "text": "a"}, "got ask=7 .*expected a string"),
    ],
)
def test_prompts_that_are_not_text_are_refused(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "sft.jsonl", [record])
    with pytest.raises(InvalidInput, match=message):
        corpus_of(tmp_path, source(path))


def test_mixed_sft_is_two_sources_of_which_one_has_prompts(tmp_path: Path) -> None:
    """Its loss is the mean over all learned tokens of both, against a plain computation."""
    worked = write(
        tmp_path / "worked.jsonl", [{"ask": "3+4=", "text": "<think>7</think>7<eos>"}] * 3
    )
    plain = write(tmp_path / "plain.jsonl", [{"text": "to think is to predict"}] * 3)
    corpus = corpus_of(tmp_path, source(worked, weight=0.5), source(plain, weight=0.5))
    documents = corpus.take(12)
    assert {document.source for document in documents} == {"worked", "plain"}
    directory = tiny.build_model_directory(tmp_path / "model")
    model = load_language_model(directory, "float32", "cpu").model
    learned = []
    with torch.no_grad():
        for document in documents:
            ids = document.token_ids_N
            num_prompt = 4 if document.source == "worked" else 1
            log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
            learned += [-float(log_p[i - 1, ids[i]]) for i in range(num_prompt, len(ids))]
        batches = micro_batches(trees_of_documents(documents), 64, torch.device("cpu"))
        got = sum(
            batch_loss(b, policy_logprobs(model, b), clip_low=0.2, clip_high=0.28).nll
            for b in batches
        )
    assert got == pytest.approx(sum(learned) / len(learned), abs=1e-4)
