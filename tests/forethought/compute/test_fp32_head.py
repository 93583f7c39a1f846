"""Logits in float32 from bfloat16 weights, the same in learner, scorer and torch engine."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.forms import Forms, forms_of, note_forms
from forethought.compute.fp32_head import FLAG, set_fp32_head
from forethought.compute.logprob import Continuation, score_continuations
from forethought.compute.model import LanguageModel, load_language_model, read_model_files
from forethought.compute.rows import pad_left, tail_logits
from forethought.compute.served_model import ServedModel
from forethought.config import load_settings
from forethought.errors import InvalidInput
from forethought.preflight import check_run
from forethought.types import WeightManifest
from tests import tiny
from tests.scored import PROMPTING, make_results
from trainer.assembly import assemble
from trainer.batch.builder import BatchBuilder
from trainer.learner.batching import micro_batches
from trainer.learner.loss import batch_loss, policy_logprobs

IDS = (5, 60, 7, 80, 9, 33)


@pytest.fixture(params=["llama", "gpt2"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.build_model_directory(tmp_path / "model", request.param)


def load(directory: Path, fp32_head: bool) -> LanguageModel:
    language_model = load_language_model(directory, "bfloat16", "cpu")
    set_fp32_head(language_model.model, fp32_head)
    return language_model


def hidden(model: Any) -> torch.Tensor:
    states = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    return states[-1][0]


@torch.no_grad()
def test_logits_are_the_float32_product_of_bfloat16_numbers(directory: Path) -> None:
    model = load(directory, fp32_head=True).model
    logits = model(torch.tensor([IDS])).logits[0]
    weight = model.get_output_embeddings().weight
    assert (weight.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    expected = hidden(model).double() @ weight.double().T
    assert float((logits.double() - expected).abs().max()) < 1e-4
    rounded = load(directory, fp32_head=False).model(torch.tensor([IDS])).logits[0]
    assert float((rounded.double() - expected).abs().max()) > 1e-3


def test_the_head_learns_in_its_own_dtype(directory: Path) -> None:
    model = load(directory, fp32_head=True).model
    logits = tail_logits(model, pad_left([IDS], torch.device("cpu")), 3)
    torch.log_softmax(logits, dim=-1)[0, :, 7].sum().backward()
    gradient = model.get_output_embeddings().weight.grad
    assert gradient.dtype == torch.bfloat16
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("fp32_head", [True, False])
def test_the_flag_is_part_of_the_model_files(
    directory: Path, tmp_path: Path, fp32_head: bool
) -> None:
    """A replica only receives the snapshot; a checkpoint is a model directory."""
    saved = tmp_path / "snapshot"
    language_model = load(directory, fp32_head)
    language_model.model.save_pretrained(saved)
    language_model.tokenizer.save_pretrained(saved)
    files = read_model_files(saved)
    assert json.loads(files["config.json"]).get(FLAG, False) == fp32_head
    served = ServedModel("policy", "cpu")
    served.load(saved, WeightManifest("policy", 1, 0, "a", "b", "bfloat16", 1))
    logits = served.now.language_model.model(torch.tensor([IDS])).logits
    assert logits.dtype == (torch.float32 if fp32_head else torch.bfloat16)


def log_ratios(sampler: LanguageModel, learner: LanguageModel) -> list[float]:
    """log pi_learner - log pi_sampler of every sampled token, by the learner's own code.

    The sampler computes every token by a pass over its row, so that hidden states are rounded alike.
    """
    builder = BatchBuilder(objectives.load("rlp"), estimators.load("leave_one_out"))
    note_forms(sampler.model, Forms("alone", "recompute"))
    trees = builder.build(make_results(sampler)).trees
    differences: list[float] = []
    with torch.no_grad():
        for batch in micro_batches(trees, 4096, torch.device("cpu"), Forms("alone")):
            log_ratio = policy_logprobs(learner.model, batch) - batch.behaviour_logprobs_M
            differences += log_ratio[batch.weights_M != 0].abs().tolist()
    return differences


def test_the_ratio_stays_nearer_to_1_than_with_one_sided_heads(directory: Path) -> None:
    """Where hidden states are rounded alike, nothing is left between two heads in float32."""
    exact, rounded = load(directory, True), load(directory, False)
    both = fmean(log_ratios(exact, exact))
    assert both < fmean(log_ratios(rounded, exact))
    assert both < fmean(log_ratios(exact, rounded))


def test_scorer_and_learner_agree(directory: Path) -> None:
    """The scorer's log p(target | thought) is the learner's."""
    language_model = load(directory, True)
    results = make_results(language_model)
    builder = BatchBuilder(
        objectives.load("rlp", {"answer_nll_coef": 1.0}), estimators.load("leave_one_out")
    )
    total = 0.0
    with torch.no_grad():
        trees, forms = builder.build(results).trees, forms_of(language_model.model)
        for batch in micro_batches(trees, 1, torch.device("cpu"), forms):
            logprobs = policy_logprobs(language_model.model, batch)
            total += batch_loss(batch, logprobs, clip_low=0.2, clip_high=0.28).nll
    queries = [
        Continuation(
            r.rollout.task.document.token_ids_N[: p.index]
            + PROMPTING.bridge_ids
            + t.token_ids_L
            + PROMPTING.close_ids[t.closed :],
            p.target_ids_H,
        )
        for r in results
        for k, p in enumerate(r.rollout.task.positions_K)
        for t in r.rollout.thoughts_KG[k]
    ]
    scores = score_continuations(language_model.model, queries, 1)
    assert total == pytest.approx(-fmean(score.total for score in scores), abs=1e-4)


@torch.no_grad()
def test_a_copied_model_computes_with_its_own_weights(directory: Path) -> None:
    model = load(directory, True).model
    other = copy.deepcopy(model)
    other.get_output_embeddings().weight.zero_()
    assert float(other(torch.tensor([IDS])).logits.abs().max()) == 0.0
    assert float(model(torch.tensor([IDS])).logits.abs().max()) > 0.0


def test_switching_it_off_undoes_it(directory: Path) -> None:
    model = load(directory, True).model
    set_fp32_head(model, False)
    assert model(torch.tensor([IDS])).logits.dtype == torch.bfloat16
    assert getattr(model.config, FLAG) is False


def test_a_model_without_a_linear_head_is_refused(directory: Path) -> None:
    model = load(directory, False).model
    model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(InvalidInput, match=r"linear output embedding.*model.fp32_head=false"):
        set_fp32_head(model, True)


@pytest.mark.parametrize("fp32_head", ["true", "false"])
def test_the_configuration_decides(directory: Path, tmp_path: Path, fp32_head: str) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("to think is to predict. " * 40)
    words = [
        f"model.path={directory}", f"corpus.path={corpus}", f"run.directory={tmp_path / 'run'}",
        "model.dtype=bfloat16", f"model.fp32_head={fp32_head}", "corpus.window_tokens=32",
    ]  # fmt: skip
    settings = load_settings(None, words, {})
    parts = assemble(settings, check_run(settings))
    config = json.loads(parts.model_files()["config.json"])
    assert config.get(FLAG, False) == (fp32_head == "true")
