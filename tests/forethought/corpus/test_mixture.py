"""The mixture: weights, passes, and resuming exactly where a run stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.mixture import Corpus, CorpusCursor, open_corpus
from forethought.errors import InvalidInput
from trainer.base_corpus import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat. " * 20], 300, "<think>", "</think>")


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def section(tmp_path):
    for name, num_lines in (("big", 40), ("small", 7)):
        lines = [{"text": f"{name} line number {i}"} for i in range(num_lines)]
        write_lines(tmp_path / f"{name}.jsonl", lines)
    return CorpusSection(
        sources=(
            SourceSection(name="big", path=str(tmp_path / "big.jsonl"), weight=3.0),
            SourceSection(name="small", path=str(tmp_path / "small.jsonl"), weight=1.0),
        ),
        window_tokens=64,
    )


@pytest.fixture
def open_mixture(section, tokenizer, cache):
    return lambda seed=0, section=section: open_corpus(section, tokenizer, seed, cache)


def test_documents_carry_what_the_windows_hold(tmp_path, cache, tokenizer):
    write_lines(tmp_path / "a.jsonl", [{"text": "the cat sat", "marks": [4]}])
    section = CorpusSection(path=str(tmp_path / "a.jsonl"), min_window_tokens=1)
    corpus = open_corpus(section, tokenizer, 0, cache)
    (document,) = corpus.take(1)
    assert document.document_id == "a.jsonl#0:0"
    assert document.source == "a.jsonl"
    assert tokenizer.decode(document.token_ids_N) == "the cat sat"
    assert sum(document.token_bytes_N) == len("the cat sat")
    assert len(document.marks) == 1
    assert document.entropies_N == document.nll_weights_N == ()
    assert all(type(value) is int for value in document.token_ids_N + document.marks)


def test_weights_are_met_and_sizes_reported(open_mixture):
    corpus = open_mixture()
    assert corpus.windows_per_source == {"big": 40, "small": 7}
    assert corpus.num_windows == 47
    sources = Counter(document.source for document in corpus.take(4000))
    assert sources["big"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_every_pass_is_another_permutation_of_all_windows(open_mixture):
    documents = [one.document_id for one in open_mixture().take(1500) if one.source == "small"]
    passes = [tuple(documents[i : i + 7]) for i in range(0, len(documents) - 7, 7)]
    assert len(passes) > 20
    assert all(len(set(one)) == 7 for one in passes)
    assert len(set(passes)) > len(passes) - 3


@pytest.mark.parametrize("num_drawn", [0, 1, 39, 200, 1000])
def test_resuming_continues_exactly(open_mixture, num_drawn):
    straight = open_mixture()
    before = straight.take(num_drawn)
    cursor = CorpusCursor.from_json(straight.cursor.to_json())
    assert cursor == straight.cursor
    assert cursor.num_drawn == num_drawn == len(before)
    resumed = open_mixture()
    resumed.take(3)
    resumed.seek(cursor)
    assert resumed.take(300) == straight.take(300)
    assert resumed.cursor == straight.cursor


def test_how_many_are_taken_at_once_does_not_matter(open_mixture):
    one_by_one = open_mixture()
    singles = [document for _ in range(60) for document in one_by_one.take(1)]
    assert singles == open_mixture().take(60)


def test_the_order_is_that_of_the_seed(open_mixture):
    assert open_mixture(1).take(30) == open_mixture(1).take(30)
    assert open_mixture(1).take(30) != open_mixture(2).take(30)


def test_the_order_is_the_same_in_every_later_version(open_mixture):
    """Checkpoints outlive library versions: change the expected list only deliberately."""
    first = [document.document_id for document in open_mixture(5).take(6)]
    assert first == [
        "big.jsonl#8:0",
        "big.jsonl#10:0",
        "big.jsonl#2:0",
        "big.jsonl#15:0",
        "big.jsonl#31:0",
        "big.jsonl#20:0",
    ]


def test_a_copy_of_the_corpus_elsewhere_takes_the_cursor(
    tmp_path, section, open_mixture, tokenizer, tmp_path_factory
):
    corpus = open_mixture()
    corpus.take(50)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = []
    for source in section.sources:
        copy = elsewhere / f"{source.name}.jsonl"
        copy.write_bytes((tmp_path / copy.name).read_bytes())
        moved.append(source.model_copy(update={"path": str(copy)}))
    copied = open_mixture(0, section.model_copy(update={"sources": tuple(moved)}))
    copied.seek(corpus.cursor)
    assert copied.take(50) == corpus.take(50)


def test_a_cursor_of_something_else_is_refused_with_what_differs(tmp_path, section, open_mixture):
    corpus = open_mixture()
    cursor = corpus.cursor
    big, small = section.sources
    with pytest.raises(
        InvalidInput, match=r"another corpus: got run.seed 1, expected 0\. Resume with the corpus"
    ):
        open_mixture(1).seek(cursor)
    with pytest.raises(
        InvalidInput, match=r"got the sources \['big'\], expected \['big', 'small'\]\. Resume"
    ):
        open_mixture(0, section.model_copy(update={"sources": (big,)})).seek(cursor)
    with pytest.raises(InvalidInput, match=r"got the sources \['small', 'big'\], expected"):
        open_mixture(0, section.model_copy(update={"sources": (small, big)})).seek(cursor)
    write_lines(tmp_path / "small.jsonl", [{"text": f"other line number {i}"} for i in range(7)])
    with pytest.raises(
        InvalidInput,
        match=r"another corpus: source 'small' has other windows \(its text, the tokenizer",
    ):
        open_mixture().seek(cursor)


def test_a_damaged_cursor_is_refused(open_mixture):
    corpus = open_mixture()
    good = json.loads(corpus.cursor.to_json())
    good["sources"][1]["index"] = 8
    with pytest.raises(InvalidInput, match="expected 0 to 7"):
        corpus.seek(CorpusCursor.from_json(json.dumps(good)))
    for text in ("", "{}", "[]", '{"sources": [1], "seed": 0, "num_drawn": 0}', '{"sources": []}'):
        with pytest.raises(InvalidInput, match="expected a corpus cursor"):
            CorpusCursor.from_json(text)


def test_no_sources_and_twin_names_are_refused(section, open_mixture):
    with pytest.raises(InvalidInput, match=r"set corpus\.path"):
        Corpus([], 0)
    twins = tuple(source.model_copy(update={"name": "same"}) for source in section.sources)
    with pytest.raises(InvalidInput, match="expected different names"):
        open_mixture(0, section.model_copy(update={"sources": twins}))


def test_importing_the_corpus_loads_nothing_heavy():
    code = (
        "import sys, forethought.corpus.mixture, trainer.base_corpus\n"
        "print([m for m in ('torch', 'datasets', 'transformers', 'tokenizers', 'numpy', 'pyarrow')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
