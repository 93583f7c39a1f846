"""An evaluation from request to report: entropies, noise, refused models and graded predictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from forethought import objectives
from forethought.compute.answers import Answer
from forethought.compute.logprob import ContinuationScore
from forethought.compute.model import add_markers, load_language_model
from forethought.compute.sampling import Sample
from forethought.errors import InvalidInput
from forethought.lab.demo.arms import base_model
from forethought.lab.evaluation.drawing import draw_evaluation
from forethought.lab.evaluation.request import EvalRequest, Overrides
from forethought.lab.evaluation.study import Grader, evaluate_checkpoints
from forethought.lab.evaluation.table import law_lines, lines, quartile_tables, tables
from forethought.lab.evaluation.text import Noise
from forethought.lab.report.evaluation import evaluation_tables
from forethought.run.checkpoints import Checkpoint
from forethought.types import Document
from tests import tiny
from tests.endpoints import plain_logprobs

TEXTS = ("The cat sat on the mat.", "A second text is here.", "3 + 4 = 7 and no more")
ENTROPIES = (0.0, 0.6, 1.2, 1.8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("study") / "first")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Token ids with repeating entropies, marks and a noise field."""
    records = [
        {
            "token_ids": list(text.encode()),
            "entropies": [ENTROPIES[i % 4] for i in range(len(text))],
            "marks": [3],
            "noise": [5, 6],
        }
        for text in TEXTS
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def request(model: Path, corpus: Path, **changes: Any) -> EvalRequest:
    overrides = Overrides(
        corpus=str(corpus), window_tokens=30, group_size=2, max_thought_tokens=4, prompt="plain"
    )
    given = EvalRequest((Checkpoint("first", model),), overrides, num_positions=10, device="cpu")
    return replace(given, **changes)


def carry_out(given: EvalRequest) -> dict[str, Any]:
    reported: list[tuple[str, int, int]] = []
    report = evaluate_checkpoints(given, lambda *news: reported.append(news))
    assert reported[-1][1] == reported[-1][2]
    json.dumps(report, allow_nan=False)
    return report


def test_the_corpus_entropies_are_used_unless_a_proxy_is_given(model: Path, corpus: Path) -> None:
    report = carry_out(request(model, corpus))
    assert report["proxy"] == "the corpus's own entropies"
    num_positions = [len(text) - 1 for text in TEXTS]
    quarter = sum(sum(i % 4 == 3 for i in range(1, len(text))) for text in TEXTS)
    candidates = {name: split["num_candidates"] for name, split in report["splits"].items()}
    assert candidates["all"] == sum(num_positions)
    assert (candidates["hard"], candidates["marked"]) == (quarter, 3)
    named = carry_out(request(model, corpus, proxy=model))
    assert named["proxy"] == str(model)
    assert {n: s["num_candidates"] for n, s in named["splits"].items()} != candidates


def test_a_field_of_the_corpus_defines_noise(model: Path, corpus: Path) -> None:
    report = carry_out(request(model, corpus, noise=Noise(field="noise")))
    assert report["splits"]["noise"] == {
        "definition": "positions marked in the field 'noise'",
        "num_candidates": 6,
        "num_positions": 6,
    }
    unsaid = carry_out(request(model, corpus))["splits"]["noise"]["num_candidates"]
    unmarked = [i for text in TEXTS for i in range(1, len(text)) if i != 3 and i % 4 in (2, 3)]
    assert unsaid == len(unmarked)


def test_models_with_another_vocabulary_are_refused(model: Path, corpus: Path) -> None:
    both = (Checkpoint("first", model), Checkpoint("demo", base_model()))
    with pytest.raises(InvalidInput, match="demo has another vocabulary than the first"):
        carry_out(request(model, corpus, checkpoints=both))
    with pytest.raises(InvalidInput, match="another vocabulary"):
        carry_out(request(model, corpus, proxy=base_model()))


def test_a_proxy_that_is_not_finite_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    proxy = tiny.corrupt(tiny.build_model_directory(tmp_path))
    with pytest.raises(InvalidInput, match=f"model {proxy} gave an entropy of nan"):
        carry_out(request(model, corpus, proxy=proxy))


def test_contexts_that_leave_no_room_are_excluded(model: Path, corpus: Path) -> None:
    long = replace(request(model, corpus).overrides, max_thought_tokens=tiny.MAX_LENGTH_TOKENS - 8)
    report = carry_out(request(model, corpus, overrides=long))
    # 96 tokens, less the thought's 88, its two markers, the prediction and the target: 4 of context.
    assert report["splits"]["all"]["num_candidates"] == 4 * len(TEXTS)
    with pytest.raises(
        InvalidInput, match=r"leave 0 of the model's 96 tokens .* lower --max-thought"
    ):
        carry_out(request(model, corpus, overrides=replace(long, max_thought_tokens=200)))


def test_windows_are_capped_at_the_models_length_unless_overridden(
    model: Path, corpus: Path
) -> None:
    unasked = replace(request(model, corpus).overrides, window_tokens=None)
    report = carry_out(request(model, corpus, overrides=unasked))
    assert report["corpus"]["window_tokens"] == tiny.MAX_LENGTH_TOKENS
    with pytest.raises(InvalidInput, match="windows of 97 tokens; expected at most the model's 96"):
        carry_out(request(model, corpus, overrides=replace(unasked, window_tokens=97)))


def test_a_series_too_short_for_a_law_is_reported_in_the_table(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    checkpoints = tuple(
        Checkpoint(f"c{i}", tiny.build_model_directory(tmp_path / f"m{i}", seed=i), step=i)
        for i in range(2)
    )
    report = carry_out(request(model, corpus, checkpoints=checkpoints, is_series=True))
    assert all("expected at least 4" in line for line in law_lines(report))
    assert len(tables(report)) == 2
    assert any("the first checkpoint" in line or "corpus's own" in line for line in lines(report))
    assert set(report["differences"]) == {"c1"}


def test_numbers_are_the_marked_positions_of_a_pattern(model: Path, corpus: Path) -> None:
    """In one run with uniform ones; the pattern of the marks does not mark noise."""
    records = [{"text": text, "noise": [5, 6]} for text in TEXTS]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = request(model, corpus)
    overrides = replace(given.overrides, marks_pattern="[0-9]+")
    report = carry_out(replace(given, overrides=overrides, noise=Noise(field="noise")))
    candidates = {name: split["num_candidates"] for name, split in report["splits"].items()}
    assert candidates["marked"] == 2  # the 3 of "3 + 4 = 7" has no context
    assert candidates["noise"] == 6
    for name in ("all", "marked"):
        figures = report["checkpoints"][0]["splits"][name]
        assert figures["information_gain_low"] <= figures["information_gain"]
        assert figures["logprob_std"] > 0
    nothing = replace(given.overrides, marks_pattern="[@]")
    with pytest.raises(InvalidInput, match=r"marks none of the .* positions of 3 windows"):
        carry_out(replace(given, overrides=nothing))


def test_quartiles_say_where_thoughts_help(model: Path, corpus: Path, tmp_path: Path) -> None:
    report = carry_out(request(model, corpus, num_positions=40))
    (checkpoint,) = report["checkpoints"]
    tables = {(t["of"], t["by"]): t["splits"] for t in checkpoint["quartiles"]}
    assert {of for of, _ in tables} == {"all", "marked"}
    for by in ("entropy", "no_think_nll", "logprob_std"):
        parts = list(tables["all", by].values())
        assert sum(part["num_positions"] for part in parts) == 40
        assert all(a["to"] < b["from"] for a, b in pairwise(parts))
        for metric in ("information_gain", "no_think_nll"):
            mean = sum(part[metric] * part["num_positions"] for part in parts) / 40
            assert mean == pytest.approx(checkpoint["splits"]["all"][metric])
    ends = [part[end] for part in tables["all", "entropy"].values() for end in ("from", "to")]
    assert {round(end, 3) for end in ends} == set(ENTROPIES)
    lowest, *_, highest = tables["all", "no_think_nll"].values()
    assert lowest["from"] < lowest["no_think_nll"] < lowest["to"] < highest["no_think_nll"]
    draw_evaluation(report, tmp_path / "eval.png")
    assert (tmp_path / "eval.png").stat().st_size > 10_000
    assert len(quartile_tables(report)) == 1
    shown = {table.title for table in evaluation_tables(report)}
    assert {"first", "first: all by entropy", "first: marked by logprob_std"} <= shown


def test_one_thought_has_no_spread_to_divide_by(model: Path, corpus: Path) -> None:
    given = request(model, corpus)
    report = carry_out(replace(given, overrides=replace(given.overrides, group_size=1)))
    (checkpoint,) = report["checkpoints"]
    assert checkpoint["splits"]["all"]["logprob_std"] == 0
    assert {table["by"] for table in checkpoint["quartiles"]} == {"entropy", "no_think_nll"}


def test_a_model_without_markers_is_evaluated_with_untrained_ones(
    corpus: Path, tmp_path: Path
) -> None:
    """The same in every load, beside a checkpoint that has them; otherwise markers are text."""
    bare, with_markers = bare_model(tmp_path / "bare"), tmp_path / "with"
    given = request(bare, corpus)
    as_text = carry_out(given)
    given = replace(given, overrides=replace(given.overrides, add_think_tokens=True))
    one, again = carry_out(given), carry_out(given)
    assert one["checkpoints"] == again["checkpoints"] != as_text["checkpoints"]
    loaded = load_language_model(bare, "float32", "cpu")
    add_markers(loaded, "<think>", "</think>")
    loaded.model.save_pretrained(with_markers)
    loaded.tokenizer.save_pretrained(with_markers)
    checkpoints = (Checkpoint("bare", bare), Checkpoint("with", with_markers))
    both = carry_out(replace(given, checkpoints=checkpoints))
    assert set(both["differences"]) == {"with"}


def bare_model(directory: Path) -> Path:
    """A model whose tokenizer has no think markers."""
    state = json.loads(tiny.build_tokenizer().backend_tokenizer.to_str()) | {"added_tokens": []}
    backend = Tokenizer.from_str(json.dumps(state))
    tiny.build_model().save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tiny.EOS).save_pretrained(directory)
    return directory


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tiny.build_tokenizer()(text)["input_ids"])


def answer_of(*thoughts: Sample) -> Answer:
    scored = ContinuationScore((-1.0,), (False,))
    return Answer(scored, thoughts, (scored,) * len(thoughts))


def said(text: str, stopped: bool = True) -> Sample:
    thought, prediction = (*ids_of("hm"), tiny.CLOSE_ID), ids_of(text)
    ids = thought + prediction
    return Sample(ids, (0.0,) * len(ids), stopped, len(prediction))


def test_a_prediction_is_correct_if_its_bytes_end_on_a_token_boundary() -> None:
    """Tokens of one, two and three bytes as stored: " c", "at ", "s"."""
    rpt = objectives.load("rpt", {"prompt": "v0"})
    document = Document("d", "s", ids_of("the cat s"), token_bytes_N=(1,) * 3 + (2, 0, 3, 0, 0, 1))
    grader = Grader(tiny.build_tokenizer(), rpt)
    boxes = {" c": True, " ca": False, " cat ": True, " cat s": True, "c": False, "": False}
    for inside, is_right in boxes.items():
        answer = answer_of(said(f"so \\boxed{{{inside}}}"))
        assert grader.num_right(answer, document, 3) == is_right, inside
    unboxed, cut = said(" c"), said("\\boxed{ c}", stopped=False)
    assert grader.num_right(answer_of(unboxed, cut, said("\\boxed{ c}")), document, 3) == 1


@pytest.mark.parametrize(("bos", "begins"), [("", True), ("never", False)])
def test_text_and_prompts_are_evaluated_behind_the_bos(
    model: Path, corpus: Path, tmp_path: Path, bos: str, begins: bool
) -> None:
    """As trained: the same numbers as of a model without a BOS on documents that begin with it."""
    begun = tiny.begin_with_bos(Path(shutil.copytree(model, tmp_path / "model")))
    overrides = replace(request(begun, corpus).overrides, bos=bos)
    report = carry_out(request(begun, corpus, overrides=overrides))
    (result,) = report["checkpoints"]
    total = num_tokens = 0.0
    for text in TEXTS:
        ids = tuple(text.encode())
        head = ((tiny.BOS_ID,) if begins else ()) + ids[:1]
        logprobs = plain_logprobs(begun, head, ids[1:], removed_id=tiny.OPEN_ID)
        total, num_tokens = total - sum(logprobs), num_tokens + len(logprobs)
    assert result["plain_text_nll"] == pytest.approx(total / num_tokens, abs=1e-4)
