"""Comparison files: reading, rejection, and the resulting settings of an arm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from forethought.config import Settings
from forethought.errors import InvalidInput
from forethought.lab.compare.downstream import check_files
from forethought.lab.compare.plan import ComparisonPlan, layered, load_plan
from forethought.lab.compare.trial import (
    Trial,
    arm_settings,
    base_settings,
    stage_settings,
    start_of,
)
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.comparison import write_questions
from forethought.lab.demo.corpus import documents
from forethought.run.cost import Cost
from tests.repository import ROOT


def contents(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "directory": "runs/mine",
        "reference": "rlp",
        "settings": {"corpus": {"path": "{corpus}/plain"}, "learner": {"steps": 3}},
        "bases": [{"name": "late", "model": "demo"}],
        "arms": [
            {"name": "base"},
            {"name": "rlp", "settings": {"objective": {"name": "rlp"}}},
            {"name": "cpt", "match": "tokens", "settings": {"objective": {"name": "ntp"}}},
        ],
        "stages": [{"name": "sft", "settings": {"objective": {"name": "ntp"}}}],
        "evaluation": {"corpus": "{corpus}/heldout.jsonl"},
    } | changes


def load(tmp_path: Path, *words: str, **changes: Any) -> ComparisonPlan:
    file = tmp_path / "plan.toml"
    file.write_text(tomli_w.dumps(contents(**changes)))
    return load_plan(file, words)


def test_the_shipped_comparison_matches_its_documentation() -> None:
    plan = load_plan(ROOT / "configs" / "compare-cpu.toml")
    assert [base.name for base in plan.bases] == ["late", "early"]
    asked = {"base", "cpt", "mixed_sft", "rft", "rpt", "rlp", "rlp_floored"}
    assert asked <= {arm.name for arm in plan.arms}
    assert plan.seeds == (0, 1, 2)
    assert plan.num_trials == 2 * (1 + 7 * 3)
    assert plan.settings["learner"]["learning_rate"] == 2e-4  # one for all arms: no arm is tuned
    assert not any("learning_rate" in arm.settings.get("learner", {}) for arm in plan.arms)


def test_every_shipped_comparison_is_valid() -> None:
    files = sorted((ROOT / "configs").glob("compare-*.toml"))
    assert len(files) == 2
    for file in files:
        plan = load_plan(file)
        assert plan.demo_corpus
        assert str(plan.directory) == f"runs/{file.stem}"


def test_the_demos_questions_are_asked_and_answered(tmp_path: Path) -> None:
    """The corpus of SFT and RLVR is from the train split, and its answers follow from its thoughts."""
    write_questions(tmp_path / "questions.jsonl", 200)
    heldout = {document.text for document in documents(5_000, seed=0, heldout=True)}
    lines = (tmp_path / "questions.jsonl").read_text().splitlines()
    assert len(lines) == 200
    for record in map(json.loads, lines):
        *_, last_state, close, answer, stop = record["response"].split()
        assert (close, stop) == ("</think>", ".")
        assert last_state == answer == record["answer"]
        assert record["question"].endswith("= ")
        assert f"{record['question']}{answer} ." not in heldout


def test_the_folder_of_the_corpus_is_filled_in_everywhere(tmp_path: Path) -> None:
    plan = load(tmp_path, "directory=elsewhere")
    assert plan.settings["corpus"]["path"] == "elsewhere/corpus/plain"
    assert plan.evaluation.corpus == "elsewhere/corpus/heldout.jsonl"


def test_arguments_override_keys_of_the_plan(tmp_path: Path) -> None:
    plan = load(tmp_path, "seeds=[4]", "evaluation.num_documents=7", "settings.learner.steps=9")
    assert plan.seeds == (4,)
    assert plan.evaluation.num_documents == 7
    assert plan.settings["learner"] == {"steps": 9}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "rpt"}, "reference 'rpt'"),
        ({"reference": "base"}, "reference 'base'"),
        ({"reference": "cpt"}, "reference 'cpt'"),
        ({"seeds": []}, "seeds"),
        ({"arm": []}, "arm: Extra inputs"),
        ({"settings": {"model": {"think_close": " So:"}}}, "think_close is ' So:', evaluation"),
        ({"bases": [{"name": "late"}]}, "bases.0.model"),
        ({"bases": [{"name": "a", "model": "m"}, {"name": "a", "model": "n"}]}, "same name"),
        ({"settings": {"learner": {"step": 3}}}, "learner.step"),
        (
            {"downstream": [{"suite": "glue"}]},
            "'glue' is not a suite with a mean; expected one of gsm8k",
        ),
        ({"downstream": [{"suite": "mmlu"}]}, "'mmlu' is not a suite with a mean"),
        ({"downstream": [{"suite": "gsm8k"}] * 2}, "downstream have the same suite"),
        ({"stages": [{"name": "s", "settings": {"objective": {"name": "no"}}}]}, "'no'"),
        (
            {"arms": [{"name": "rlp", "settings": {"sampling": {"group_size": 1}}}]},
            "at least 2",
        ),
    ],
)
def test_errors_name_the_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words.replace("[", r"\[")):
        load(tmp_path, **changes)


def test_an_objective_or_a_source_replaces_the_one_below() -> None:
    below = {
        "objective": {"name": "rlp", "parameters": {"positions": "marked"}},
        "corpus": {"path": "a", "window_tokens": 32},
    }
    above = {"objective": {"name": "rpt"}, "corpus": {"sources": [{"path": "b"}]}}
    merged = layered(below, above)
    assert merged["objective"] == {"name": "rpt"}
    assert merged["corpus"] == {"window_tokens": 32, "sources": [{"path": "b"}]}
    assert below["corpus"] == {"path": "a", "window_tokens": 32}
    assert layered(below, {"corpus": {"window_tokens": 8}})["corpus"]["path"] == "a"


def test_settings_of_arms_bases_and_stages(tmp_path: Path) -> None:
    early = {
        "name": "early", "model": "./init", "settings": {"learner": {"steps": 50}},
        "arm_settings": {"learner": {"steps": 7}},
    }  # fmt: skip
    plan = load(tmp_path, bases=[early])
    (base,), (_, rlp, cpt) = plan.bases, plan.arms
    trial, start = Trial("early", "rlp", 2), start_of(base)
    assert start == Path("init")
    trained = Settings.model_validate(base_settings(plan, base))
    assert (trained.learner.steps, trained.model.path, trained.run.seed) == (50, "init", 0)
    settings = Settings.model_validate(arm_settings(plan, trial, rlp, base, Path("m"), Cost()))
    assert (settings.learner.steps, settings.learner.max_tokens) == (7, 0)
    assert (settings.run.seed, settings.model.path) == (2, "m")
    assert str(settings.run.directory).endswith("trials/early/rlp/seed-2/run")
    budget = Cost(sampled_tokens=300, scored_tokens=100, learned_tokens=200)
    matched = Settings.model_validate(arm_settings(plan, trial, cpt, base, Path("m"), budget))
    assert matched.learner.max_tokens == 500
    assert matched.learner.steps > 10**6
    by_flops = cpt.model_copy(update={"match": "flops"})
    matched = Settings.model_validate(arm_settings(plan, trial, by_flops, base, start, budget))
    assert matched.learner.max_tokens == (2 * (300 + 100) + 6 * 200) // 6
    behind = Trial("early", "rlp", 2, "sft")
    after = Settings.model_validate(stage_settings(plan, behind, plan.stages[0], Path("m2")))
    assert (after.model.path, after.objective.name, after.learner.steps) == ("m2", "ntp", 3)
    assert str(after.run.directory).endswith("trials/early/rlp/seed-2/sft/run")
    assert start_of(base.model_copy(update={"model": "demo"})) == base_model()


def test_a_benchmarks_file_is_read_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    file = tmp_path / "gsm8k.jsonl"
    entry = {"suite": "gsm8k", "data": str(file), "limit": 5}
    plan = load(tmp_path, downstream=[entry])
    with pytest.raises(InvalidInput, match="does not exist; expected one file"):
        check_files(plan)
    file.write_text('{"problem": "p"}')
    with pytest.raises(InvalidInput, match="expected those of GSM8K"):
        check_files(plan)
    file.write_text('{"question": "q", "answer": "#### 4"}')
    check_files(plan)
    with pytest.raises(InvalidInput, match="rpt reads data sets of its own"):
        check_files(load(tmp_path, downstream=[entry | {"suite": "rpt"}]))


@pytest.mark.parametrize("limit", ["max_failed_batches", "max_unlearned_batches"])
def test_a_matched_arm_needs_an_end_without_learning(limit: str, tmp_path: Path) -> None:
    settings = {"corpus": {"path": "x"}, "learner": {limit: 0}}
    with pytest.raises(InvalidInput, match="arm cpt has match and no limit on batches"):
        load(tmp_path, settings=settings)
    arms = [arm for arm in contents()["arms"] if "match" not in arm]
    load(tmp_path, settings=settings, arms=arms)
