"""The measurements of a position: by hand, by Jensen, and independent of later text."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from forethought.compute.answers import Answer, Query, answer_queries, evaluate, thought_ids
from forethought.compute.decode_batches import cache_bytes_per_token
from forethought.compute.forms import Forms, note_forms
from forethought.compute.model import LanguageModel, load_language_model
from forethought.errors import InvalidInput
from forethought.types import Document, Position, Prompting, Sampling
from tests import tiny

PROMPTING = Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,))
SAMPLING = Sampling(group_size=4, max_thought_tokens=5, stop_ids=(tiny.CLOSE_ID,))
TEXT = b"The cat sat on the mat; 3 + 4 = 7."


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> LanguageModel:
    return load_language_model(directory, "float32", "cpu")


def queries_of(text: bytes, *indices: int) -> list[Query]:
    document = Document("a#0:0", "a", tuple(text))
    return [Query(document, Position(i, document.token_ids_N[i : i + 1])) for i in indices]


@torch.no_grad()
def log_p(directory: Path, prefix: tuple[int, ...], target: int, removed: int | None = None) -> Any:
    """A plain forward pass that shares no code with the scorer."""
    loaded = AutoModelForCausalLM.from_pretrained(directory).eval()
    logits = loaded(torch.tensor([prefix])).logits[0, -1].double()
    if removed is not None:
        logits[removed] = -torch.inf
    return logits.log_softmax(-1)[target].item()


@pytest.mark.parametrize("prediction_tokens", [0, 2])
def test_the_three_nlls_are_those_of_a_direct_computation(
    directory: Path, model: LanguageModel, prediction_tokens: int
) -> None:
    sampling = replace(SAMPLING, prediction_tokens=prediction_tokens, stop_ids=tuple(range(100)))
    (query,) = queries_of(TEXT, 9)
    (answer,) = answer_queries(model, [query], PROMPTING, sampling, seed=3)
    context, (target,) = query.document.token_ids_N[:9], query.position.target_ids_H
    after = []
    for thought in answer.thoughts_G:
        cut = len(thought.token_ids_L) - thought.num_prediction_tokens
        closing = () if thought.stopped else PROMPTING.close_ids
        prefix = (*context, tiny.OPEN_ID, *thought.token_ids_L[:cut], *closing)
        after.append(log_p(directory, prefix, target))
    assert {t.num_prediction_tokens for t in answer.thoughts_G if t.stopped} == {prediction_tokens}
    mixture = sum(math.exp(value) for value in after) / len(after)
    assert answer.think_nll == pytest.approx(-sum(after) / len(after), abs=1e-4)
    assert answer.marginal_nll == pytest.approx(-math.log(mixture), abs=1e-4)
    plain = log_p(directory, context, target, removed=tiny.OPEN_ID)
    assert answer.no_think_nll == pytest.approx(-plain, abs=1e-4)
    assert abs(plain - log_p(directory, context, target)) > 1e-4  # the mass mattered
    assert answer.information_gain == pytest.approx(answer.no_think_nll - answer.think_nll)


def test_think_nll_is_never_below_marginal_nll(model: LanguageModel) -> None:
    """Jensen: -E log p >= -log E p, at every position, strictly where thoughts differ."""
    answers: list[Answer] = []
    for seed in range(4):
        answers += answer_queries(
            model, queries_of(TEXT, *range(2, 30, 3)), PROMPTING, SAMPLING, seed
        )
    assert all(answer.think_nll >= answer.marginal_nll - 1e-12 for answer in answers)
    assert sum(answer.think_nll > answer.marginal_nll + 0.01 for answer in answers) > 20
    alone = answer_queries(model, queries_of(TEXT, 5), PROMPTING, replace(SAMPLING, group_size=1))
    assert alone[0].think_nll == pytest.approx(alone[0].marginal_nll, abs=1e-12)


def test_thoughts_do_not_see_what_follows(model: LanguageModel) -> None:
    """Causality: another target, and another text after it, give the same thoughts; another context not."""
    index = 12
    before, after = TEXT[:index], list(TEXT[index:])
    Random(0).shuffle(after)
    permuted = before + bytes(after)
    assert permuted[index] != TEXT[index]
    reference = answer_queries(model, queries_of(TEXT, index), PROMPTING, SAMPLING, seed=1)
    other = answer_queries(model, queries_of(permuted, index), PROMPTING, SAMPLING, seed=1)
    assert [a.thoughts_G for a in reference] == [a.thoughts_G for a in other]
    assert reference[0].think_nll != other[0].think_nll
    elsewhere = answer_queries(
        model, queries_of(b"X" + TEXT[1:], index), PROMPTING, SAMPLING, seed=1
    )
    assert reference[0].thoughts_G != elsewhere[0].thoughts_G


def test_random_numbers_depend_on_the_index_not_on_the_batch(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = queries_of(TEXT, 4, 9, 14, 19, 24)
    together = answer_queries(model, queries, PROMPTING, SAMPLING, seed=2)
    reported: list[int] = []
    monkeypatch.setattr("forethought.compute.answers._BATCH_POSITIONS", 2)
    apart = answer_queries(model, queries, PROMPTING, SAMPLING, 2, reported.append)
    assert reported == [2, 4, 5]
    for one, other in zip(together, apart, strict=True):
        assert [t.token_ids_L for t in one.thoughts_G] == [t.token_ids_L for t in other.thoughts_G]
        assert one.think_nll == pytest.approx(other.think_nll, abs=1e-4)


def test_a_decode_batch_stays_within_its_cache_and_changes_no_thought(directory: Path) -> None:
    """64 positions x G rows of a large model and a long window took hundreds of GB."""
    model = load_language_model(directory, "float32", "cpu")
    note_forms(model.model, Forms(decoding="cache"))
    queries = queries_of(TEXT, 4, 9, 14, 19, 24, 29)
    sampling = replace(SAMPLING, group_size=16)
    whole, unbounded = widest_forward(model, queries, sampling, 1 << 40)
    assert unbounded > 2 * 600
    for max_tokens in (600, 100, 1):
        max_bytes = max_tokens * cache_bytes_per_token(model.model)
        cut, most = widest_forward(model, queries, sampling, max_bytes)
        assert most <= max(max_tokens, 36), "a row longer than the budget is decoded alone"
        for one, other in zip(whole, cut, strict=True):
            assert [t.token_ids_L for t in one.thoughts_G] == [
                t.token_ids_L for t in other.thoughts_G
            ]
            assert one.think_nll == pytest.approx(other.think_nll, abs=1e-4)


def widest_forward(
    model: LanguageModel, queries: list[Query], sampling: Sampling, max_cache_bytes: int
) -> tuple[list[Answer], int]:
    """The answers, and the most tokens (rows times cached length) of a decoding pass."""
    most = 0

    def note(_: Any, __: Any, options: dict[str, Any]) -> None:
        nonlocal most
        if options["use_cache"]:
            most = max(most, options["attention_mask"].numel())

    with model.model.register_forward_pre_hook(note, with_kwargs=True):
        return answer_queries(
            model, queries, PROMPTING, sampling, 2, max_cache_bytes=max_cache_bytes
        ), most


def test_the_cache_of_a_token_is_keys_and_values_of_every_layer(model: LanguageModel) -> None:
    config = model.model.config
    keys = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert cache_bytes_per_token(model.model) == 2 * keys * 4


def test_the_means_are_of_the_answers(model: LanguageModel) -> None:
    queries = queries_of(TEXT, 3, 8, 13, 18)
    answers = answer_queries(model, queries, PROMPTING, SAMPLING, seed=5)
    figures = evaluate(model, queries, PROMPTING, SAMPLING, seed=5).to_dict()
    assert set(figures) == {
        "think_accuracy", "no_think_accuracy", "think_nll", "marginal_nll", "no_think_nll",
        "information_gain", "thought_tokens_mean", "truncated_share",
    }  # fmt: skip
    assert all(type(value) is float for value in figures.values())
    assert figures["marginal_nll"] == pytest.approx(sum(a.marginal_nll for a in answers) / 4)
    lengths = [len(thought_ids(t)) for a in answers for t in a.thoughts_G]
    assert figures["thought_tokens_mean"] == pytest.approx(sum(lengths) / 16)
    assert figures["information_gain"] == pytest.approx(
        figures["no_think_nll"] - figures["think_nll"]
    )


def test_log_probs_that_are_not_finite_are_refused(directory: Path) -> None:
    broken = load_language_model(directory, "float32", "cpu")
    broken.model.lm_head.weight.data[7, 3] = math.nan
    with pytest.raises(InvalidInput, match=f"model {directory} gave a log-prob of nan"):
        evaluate(broken, queries_of(TEXT, 9), PROMPTING, SAMPLING)
