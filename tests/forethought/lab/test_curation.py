"""Curation: entropies computed by hand, files as the corpus reads them, and resuming after a kill."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from forethought.cli import app
from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.mixture import open_corpus
from forethought.errors import InvalidInput
from forethought.lab import curation
from forethought.lab.curation import CurationRequest, curate
from forethought.objectives.parts.selection import Selection
from forethought.types import Document
from tests import tiny

WINDOW = 24
TEXTS = [
    "The cat sat on the mat, and then it slept until noon.",
    "füße 日本語 🙂",
    "a",
    "3 + 4 = 7, so 7 - 4 = 3 and 7 - 3 = 4; nothing else is said here, is it?",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("proxy"), "gpt2")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    records = [{"text": text, "marks": [len(text) - 1]} for text in TEXTS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def order(corpus: Path, model: Path, out: Path, **changes: Any) -> CurationRequest:
    given = {"window_tokens": WINDOW, "device": "cpu", "part_windows": 3} | changes
    return CurationRequest(SourceSection(path=str(corpus)), model, out, **given)


def silent(num_done: int, num_windows: int) -> None:
    """Ignores progress."""


def documents_of(path: Path, cache: Path, num_documents: int) -> dict[tuple[int, ...], Document]:
    section = CorpusSection(path=str(path), window_tokens=WINDOW, min_window_tokens=2)
    read = open_corpus(section, tiny.build_tokenizer(), 0, cache)
    assert read.num_windows == num_documents
    return {document.token_ids_N: document for document in read.take(num_documents)}


@torch.no_grad()
def direct_entropies(model: Path, token_ids: tuple[int, ...], renormalise: bool) -> list[float]:
    """One plain pass, float64, a loop over positions: -sum p ln p over the 16 likeliest."""
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    logits = loaded(torch.tensor([token_ids])).logits[0].double()
    values = [0.0]
    for row in logits[:-1]:
        p = sorted(torch.softmax(row, -1).tolist(), reverse=True)[:16]
        total = sum(p) if renormalise else 1.0
        values.append(-sum(x / total * math.log(x / total) for x in p))
    return values


@pytest.mark.parametrize("renormalise", [False, True])
def test_entropies_are_those_of_a_direct_computation(
    corpus: Path, model: Path, tmp_path: Path, renormalise: bool
) -> None:
    out = tmp_path / "curated"
    num_windows = curate(order(corpus, model, out, renormalise=renormalise), silent)
    plain = documents_of(corpus, tmp_path / "a", num_windows)
    annotated = documents_of(out, tmp_path / "b", num_windows)
    assert annotated.keys() == plain.keys()
    spread = set()
    for token_ids, document in annotated.items():
        expected = direct_entropies(model, token_ids, renormalise)
        assert document.entropies_N == pytest.approx(expected, abs=1e-6)
        assert document.marks == plain[token_ids].marks
        assert document.token_bytes_N == plain[token_ids].token_bytes_N
        spread |= {round(value, 1) for value in document.entropies_N}
    assert len(spread) > 5


def test_a_proxy_that_is_not_finite_is_refused(corpus: Path, tmp_path: Path) -> None:
    proxy = tiny.corrupt(tiny.build_model_directory(tmp_path / "broken"))
    with pytest.raises(InvalidInput, match=f"model {proxy} gave an entropy of nan"):
        curate(order(corpus, proxy, tmp_path / "out"), silent)


def test_positions_are_chosen_without_a_proxy(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "curated"
    num_windows = curate(order(corpus, model, out), silent)
    selection = Selection(positions="entropy", min_entropy=1.5, num_positions=99)
    for document in documents_of(out, tmp_path / "cache", num_windows).values():
        found = [position.index for position in selection.select(document, Random(0))]
        every = range(1, len(document.token_ids_N))
        assert found == [index for index in every if document.entropies_N[index] >= 1.5]


def test_parts_record_their_settings(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "curated"
    curate(order(corpus, model, out, renormalise=True, top_k=8), silent)
    settings = json.loads((out / ".curation.json").read_text())
    assert (settings["top_k"], settings["renormalised"]) == (8, True)
    assert (settings["model"], settings["window_tokens"]) == (str(model), WINDOW)
    for part in out.glob("part-*.parquet"):
        assert json.loads(pq.read_schema(part).metadata[b"forethought.curation"]) == settings


def test_a_killed_run_resumes_with_the_first_missing_part(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "curated"
    num_windows = curate(order(corpus, model, whole), silent)
    assert len(list(whole.glob("part-*.parquet"))) > 1

    def killed(num_done: int, total: int) -> None:
        if num_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(order(corpus, model, out), killed)
    (first,) = out.glob("part-*.parquet")
    (out / f".{first.name}.99").write_bytes(
        b"half a part"
    )  # left by a process that died while writing
    written = first.stat().st_mtime_ns
    calls: list[int] = []
    real = curation.entropies
    monkeypatch.setattr(
        curation, "entropies", lambda m, q, b: calls.append(len(q)) or real(m, q, b)
    )
    assert curate(order(corpus, model, out), silent) == num_windows
    assert sum(calls) == num_windows - 3
    assert first.stat().st_mtime_ns == written
    for part in whole.glob("part-*.parquet"):
        assert pq.read_table(out / part.name).equals(pq.read_table(part))
    documents_of(out, tmp_path / "cache", num_windows)


def test_shards_partition_the_windows(corpus: Path, model: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "curated"
    num_windows = curate(order(corpus, model, whole), silent)
    sizes = [
        curate(order(corpus, model, out, shard=shard, num_shards=3), silent) for shard in (3, 1, 2)
    ]
    assert sum(sizes) == num_windows
    assert max(sizes) - min(sizes) <= 1
    together = documents_of(out, tmp_path / "a", num_windows)
    alone = documents_of(whole, tmp_path / "b", num_windows)
    assert together.keys() == alone.keys()
    for token_ids, document in together.items():
        assert document.entropies_N == pytest.approx(alone[token_ids].entropies_N, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"top_k": 8}, r"top_k 16, now 8.*another --out"),
        ({"renormalise": True}, "renormalised False, now True"),
        ({"dtype": "bfloat16"}, "dtype 'float32', now 'bfloat16'"),
        ({"num_shards": 2}, "num_shards 1, now 2"),
        ({"window_tokens": 12}, "window_tokens 24, now 12"),
        ({"shard": 2}, "shard 2/1"),
        ({"window_tokens": 200}, "the proxy's 96"),
    ],
)
def test_mismatched_settings_are_refused(
    corpus: Path, model: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    out = tmp_path / "curated"
    curate(order(corpus, model, out), silent)
    before = sorted(out.glob("part-*"))
    with pytest.raises(InvalidInput, match=says):
        curate(order(corpus, model, out, **changes), silent)
    assert sorted(out.glob("part-*")) == before


@pytest.mark.parametrize(
    "entropies", [[0.0, 1.0], [0.0, 1.0, -1.0], [0.0, 1.0, None], [0.0, 1.0, "x"]]
)
def test_invalid_annotations_are_refused(tmp_path: Path, entropies: list[Any]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"token_ids": [5, 6, 7], "entropies": entropies}))
    with pytest.raises(InvalidInput, match=r"entropies for 3 tokens.*forethought curate"):
        documents_of(path, tmp_path / "cache", 1)


def test_entropies_beside_a_text_are_not_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "abc", "token_ids": [1], "entropies": [9.0]}))
    (document,) = documents_of(path, tmp_path / "cache", 1).values()
    assert document.entropies_N == ()


def test_windows_of_a_run_cut_the_annotations_too(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    values = [float(i) for i in range(WINDOW + 6)]
    path.write_text(json.dumps({"token_ids": [5] * WINDOW + [6] * 6, "entropies": values}))
    documents = documents_of(path, tmp_path / "cache", 2)
    assert documents[(6,) * 6].entropies_N == tuple(values[WINDOW:])


def test_the_command(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "curated"
    words = ["curate", str(corpus), "--model", str(model), "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--window-tokens", str(WINDOW), "--shard", "1/1"])
    assert done.exit_code == 0, done.output
    assert "entropies in nats over the top 16 tokens, not renormalised" in " ".join(
        done.output.split()
    )
    assert f"corpus.window_tokens={WINDOW}" in done.output
    assert "computing in float32 (as configured)" in done.output
    for wrong in (["--shard", "4"], ["--dtype", "int8"]):
        refused = CliRunner().invoke(app, [*words, *wrong])
        assert isinstance(refused.exception, InvalidInput)


def test_numbers_are_marked_with_their_entropies(corpus: Path, model: Path, tmp_path: Path) -> None:
    """A folder keeps the pattern that it was started with."""
    out = tmp_path / "curated"
    given = {"source": SourceSection(path=str(corpus), marks_pattern="[0-9]+"), "bos": "never"}
    curate(replace(order(corpus, model, out), **given), silent)
    marked = {
        tiny.build_tokenizer().decode([document.token_ids_N[i]])
        for document in documents_of(out, tmp_path / "c", 7).values()
        for i in document.marks
        if document.entropies_N
    }
    assert marked == {"3", "4", "7", ".", "?", "\ufffd"}  # and what the records mark
    with pytest.raises(InvalidInput, match="marks_pattern"):
        curate(order(corpus, model, out, bos="never"), silent)


@pytest.mark.parametrize(("bos", "begins"), [("tokenizer", True), ("never", False)])
def test_entropies_follow_the_proxys_bos(
    model: Path, corpus: Path, tmp_path: Path, bos: Any, begins: bool
) -> None:
    proxy = tiny.begin_with_bos(Path(shutil.copytree(model, tmp_path / "proxy")))
    curate(order(corpus, proxy, tmp_path / "out", bos=bos), silent)
    before = (tiny.BOS_ID,) if begins else ()
    rows = [
        row
        for file in (tmp_path / "out").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    assert rows
    for row in rows:
        assert row["token_ids"][0] != tiny.BOS_ID
        direct = direct_entropies(proxy, (*before, *row["token_ids"]), False)
        expected = [0.0, *direct[len(before) + 1 :]]
        assert row["entropies"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InvalidInput, match="was started with other settings: bos"):
        curate(order(corpus, proxy, tmp_path / "out", bos="always"), silent)
