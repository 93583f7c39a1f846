"""The shipped configurations: valid, chained as documented, and with the papers' hyperparameters."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forethought.config import Settings, load_settings
from forethought.preflight import check_run, estimator_name
from tests.repository import ROOT

CONFIGS = ROOT / "configs"
FILES = sorted(file for file in CONFIGS.glob("*.toml") if not file.stem.startswith("compare"))
REAL_MODEL = CONFIGS / "rlp-smollm2-135m-gsm8k.toml"
PAPERS = [file for file in FILES if file.stem.startswith(("rlp-", "rpt-")) and file != REAL_MODEL]
CHAINS = (
    ("rlp-qwen3-1.7b-base", "rlp-qwen3-1.7b-base-sft", "rlp-qwen3-1.7b-base-rlvr"),
    ("rlp-nemotron-nano-12b-v2", "rlp-nemotron-nano-12b-v2-sft", "rlp-nemotron-nano-12b-v2-rlvr"),
    ("rpt-r1-distill-qwen-14b", "rpt-r1-distill-qwen-14b-rlvr"),
)


def load(name: str) -> Settings:
    return load_settings(CONFIGS / f"{name}.toml", (), {})


def by_path(settings: Settings, path: str) -> Any:
    value: Any = settings
    for key in path.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_key_is_known(file: Path) -> None:
    load_settings(file, (), {})


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.name)
def test_a_papers_preset_is_a_run_that_could_start(file: Path) -> None:
    """The objective accepts its parameters, and a task's result fits into Redis."""
    pytest.importorskip("math_verify")
    settings = load_settings(file, (), {})
    check_run(settings)
    assert settings.run.name == file.stem
    assert settings.run.directory == Path("runs") / file.stem


def test_the_preset_of_a_real_model_could_start_and_warms_up() -> None:
    settings = load_settings(REAL_MODEL, (), {})
    assert check_run(settings).thinks
    assert settings.warmup.when == "auto"
    assert settings.run.directory == Path("runs") / REAL_MODEL.stem
    (source,) = settings.corpus.resolved_sources()
    assert (source.subset, source.split) == ("main", "train")
    assert re.findall(source.marks_pattern, "a 12, 3.5") == ["12", "3", "5"]


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.name)
def test_what_is_not_in_a_paper_is_marked_as_ours(file: Path) -> None:
    """And no preset alternates with next-token steps, which neither paper does."""
    text = file.read_text(encoding="utf-8")
    assert "[P]" in text
    assert "[ours]" in text
    learner = load_settings(file, (), {}).learner
    assert (learner.next_token_every_steps, learner.next_token_coef) == (0, 0.0)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_every_stage_starts_from_the_last_checkpoint_of_the_one_before(
    chain: tuple[str, ...],
) -> None:
    for before, after in pairwise(chain):
        first = load(before)
        last = first.run.directory / "checkpoints" / f"step-{first.learner.steps:06d}" / "model"
        assert load(after).model.path == str(last)


RLP = {
    "objective.name": "rlp",
    "objective.parameters.positions": "uniform",
    "objective.parameters.num_positions": 1,
    "objective.parameters.target_tokens": 1,
    "corpus.window_tokens": 2048,
    "sampling.group_size": 16,
    "sampling.max_thought_tokens": 2048,
    "sampling.temperature": 0.7,
    "learner.batch_tasks": 512,
    "learner.learning_rate": 1e-6,
    "learner.schedule": "constant",
    "learner.loss": "ppo_clip",
    "learner.aggregation": "sequence_mean",
    "learner.max_staleness": 0,
    "baseline.kind": "ema",
    "baseline.decay": 0.999,
}
RPT = {
    "objective.name": "rpt",
    "objective.parameters.prompt": "v0",
    "objective.parameters.reward": "prefix",
    "objective.parameters.positions": "entropy",
    "corpus.window_tokens": 4096,
    "sampling.group_size": 8,
    "sampling.temperature": 0.8,
    "learner.steps": 1000,
    "learner.batch_tasks": 256,
    "learner.learning_rate": 1e-6,
    "learner.beta1": 0.9,
    "learner.beta2": 0.999,
    "learner.weight_decay": 0.01,
    "learner.grad_clip_norm": 0.2,
    "filter.zero_variance": True,
    "filter.replace_from_step": 500,
}


@pytest.mark.parametrize(
    ("name", "figures", "estimator"),
    [
        ("rlp-qwen3-1.7b-base", RLP, "leave_one_out"),
        ("rlp-nemotron-nano-12b-v2", RLP, "leave_one_out"),
        ("rpt-r1-distill-qwen-14b", RPT, "group_std"),
    ],
)
def test_the_papers_figures(name: str, figures: dict[str, Any], estimator: str) -> None:
    """arXiv 2510.01265 v2, section 4 and appendix; arXiv 2506.08007, section 3.4 and appendix."""
    settings = load(name)
    assert {path: by_path(settings, path) for path in figures} == figures
    assert estimator_name(settings, check_run(settings)) == estimator


def test_lengths_and_steps_that_follow_from_the_papers_figures() -> None:
    rpt = load("rpt-r1-distill-qwen-14b")
    prediction = rpt.objective.parameters["prediction_tokens"]
    assert rpt.sampling.max_thought_tokens + prediction == 8192
    per_step = 170e6 / 200
    assert load("rlp-qwen3-1.7b-base").learner.steps == pytest.approx(1e9 / per_step, rel=0.005)
    assert load("rlp-nemotron-nano-12b-v2").learner.steps == pytest.approx(
        250e6 / per_step, rel=0.005
    )
    cpt = load("rlp-qwen3-1.7b-base-cpt")
    tokens = cpt.learner.batch_tasks * cpt.corpus.window_tokens
    assert tokens == pytest.approx(6e6, rel=0.005)
    assert tokens * cpt.learner.steps == pytest.approx(1e9, rel=0.005)
    rlvr = load("rlp-qwen3-1.7b-base-rlvr")
    assert rlvr.learner.batch_tasks * rlvr.sampling.group_size == 1024
    assert rlvr.learner.steps == -(-7500 // rlvr.learner.batch_tasks)
    tuned = load("rpt-r1-distill-qwen-14b-rlvr")
    assert tuned.learner.steps == 15 * 256 // tuned.learner.batch_tasks


def test_floor_then_plain_floors_a_part_of_its_batches() -> None:
    settings = load("floor-then-plain")
    objective = check_run(settings)
    until = settings.objective.parameters["floor_until_batch"]
    assert 0 < until < settings.learner.steps
    assert objective.of_batch(until - 1).config.transform == "floor"
    assert objective.of_batch(until).config.transform == "identity"
    assert settings.learner.no_think_every_steps > 0


def test_the_presets_are_all_described() -> None:
    described = (CONFIGS.parent / "docs/presets.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.-]+\.toml)`", described))
    assert {file.name for file in PAPERS} | {"floor-then-plain.toml"} <= named
    assert named <= {file.name for file in CONFIGS.glob("*.toml")}
