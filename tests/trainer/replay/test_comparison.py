"""The learner's log-probs of sampled tokens: those of a sound sampler, and of no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.compute.forms import Forms, RowForm, note_forms
from forethought.compute.model import LanguageModel, load_language_model
from tests import tiny
from tests.scored import TEMPERATURE, make_results
from trainer.replay.comparison import Comparison, compare, tolerance_of
from trainer.replay.excerpt import Excerpt, excerpts_of


@pytest.fixture(params=["llama", "gpt2"])
def language_model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    directory = tiny.build_model_directory(tmp_path / "model", request.param)
    return load_language_model(directory, "float32", "cpu")


def sampled(language_model: LanguageModel) -> list[Excerpt]:
    return excerpts_of([result.rollout for result in make_results(language_model)], 0)


@pytest.mark.parametrize("rows", ["trees", "padded", "alone"])
@pytest.mark.parametrize("max_batch_tokens", [4096, 1])
def test_a_sound_sampler_agrees_in_whatever_form_the_learner_computes(
    language_model: LanguageModel, rows: RowForm, max_batch_tokens: int
) -> None:
    """Sampled with a cache at temperature 0.8."""
    model, excerpts = language_model.model, sampled(language_model)
    note_forms(model, Forms(rows))
    comparison = compare(model, excerpts, 0, max_batch_tokens)
    assert comparison.difference < 1e-5
    assert comparison.policy == pytest.approx(comparison.behaviour, abs=1e-5)
    assert comparison.num_tokens == sum(len(each.token_ids_L) for each in excerpts)
    assert comparison.is_within(tolerance_of(model, TEMPERATURE))


def test_temperature_one_is_not_what_was_sampled(language_model: LanguageModel) -> None:
    excerpts = [replace(each, temperature=1.0) for each in sampled(language_model)]
    comparison = compare(language_model.model, excerpts, 0, 4096)
    assert comparison.difference > 0.1
    assert not comparison.is_within(tolerance_of(language_model.model, TEMPERATURE))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda model: model.lm_head.weight.mul_(1.1), id="another-head"),
        pytest.param(lambda model: _first_layer(model).zero_(), id="a-layer-that-was-not-loaded"),
        pytest.param(lambda model: model.lm_head.weight.mul_(math.nan), id="not-a-number"),
    ],
)
def test_other_weights_do_not_agree(
    fault: Callable[[Any], object], language_model: LanguageModel
) -> None:
    excerpts = sampled(language_model)
    with torch.no_grad():
        fault(language_model.model)
    comparison = compare(language_model.model, excerpts, 0, 4096)
    assert not comparison.is_within(tolerance_of(language_model.model, TEMPERATURE))


def _first_layer(model: Any) -> torch.Tensor:
    return next(p for name, p in model.named_parameters() if ".0." in name and p.dim() == 2)


def test_bfloat16_may_differ_by_its_rounding_and_by_one_token_but_not_by_a_fault(
    tmp_path: Path,
) -> None:
    directory = tiny.build_model_directory(tmp_path / "model")
    rounded = load_language_model(directory, "bfloat16", "cpu")
    exact, excerpts = load_language_model(directory, "float32", "cpu"), sampled(rounded)
    tolerance_nats = tolerance_of(rounded.model, TEMPERATURE)
    assert tolerance_nats == 0.2 / TEMPERATURE
    assert compare(rounded.model, excerpts, 0, 4096).is_within(tolerance_nats)
    rounding = compare(exact.model, excerpts, 0, 4096)
    assert rounding.difference > 1e-3
    assert rounding.is_within(tolerance_nats)
    first = excerpts[0]
    one_expert = replace(
        first,
        behaviour_logprobs_L=(first.behaviour_logprobs_L[0] - 1, *first.behaviour_logprobs_L[1:]),
    )
    assert compare(rounded.model, [one_expert, *excerpts[1:]], 0, 4096).is_within(tolerance_nats)
    with torch.no_grad():
        _first_layer(rounded.model).zero_()
    assert not compare(rounded.model, excerpts, 0, 4096).is_within(tolerance_nats)


def test_the_sentence_has_both_numbers() -> None:
    text = str(Comparison(3, 32, behaviour=-2.31, policy=-3.1254, difference=0.913))
    assert "over 32 tokens sampled by policy version 3" in text
    assert "its mean log-prob is -2.3100 and the learner's -3.1254, 0.91 nats" in text
