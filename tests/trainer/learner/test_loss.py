"""Losses and aggregations against hand-worked numbers and a plain per-token loop."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.forms import forms_of
from forethought.compute.model import LanguageModel, load_language_model
from forethought.compute.token_logprobs import Targets
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.types import ScoredRollout
from tests import tiny
from tests.scored import PROMPTING, TEMPERATURE, make_results, off_policy
from trainer.batch import aggregation
from trainer.batch.builder import BatchBuilder
from trainer.batch.thought_tree import ThoughtTree
from trainer.learner.batching import MicroBatch, micro_batches
from trainer.learner.learner import Learner
from trainer.learner.loss import SURROGATES, LossParts, batch_loss, policy_logprobs

LN = math.log


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("model") / "model")
    return load_language_model(directory, "float32", "cpu")


def loss_of(
    name: str, ratios: list[list[float]], advantages: list[float], **options: Any
) -> tuple[LossParts, list[list[float]]]:
    """Loss and gradient by log-prob of rows of thought tokens with the given ratios, weight 1 each.

    Every row begins with two tokens that are not trained and whose log-probs must not matter.
    """

    def flat(rows: Iterable[list[float]], untrained: float) -> torch.Tensor:
        return torch.tensor([value for row in rows for value in (untrained, untrained, *row)])

    lengths = [len(row) for row in ratios]
    policy = flat(([-1.0] * n for n in lengths), math.inf).requires_grad_()
    batch = MicroBatch(
        pack=None,  # type: ignore[arg-type]
        targets=Targets(torch.zeros(len(policy), dtype=torch.long)),
        sequences_M=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths) + 2),
        weights_M=flat(([1.0] * n for n in lengths), 0.0),
        advantages_M=flat(([a] * n for a, n in zip(advantages, lengths, strict=True)), 1.0),
        behaviour_logprobs_M=flat(([-1.0 - LN(r) for r in row] for row in ratios), 0.0),
        nll_weights_M=torch.zeros_like(policy),
        num_row_tokens=0,
    )
    parts = batch_loss(batch, policy, clip_low=0.2, clip_high=0.28, surrogate=name, **options)
    parts.loss.backward()
    assert policy.grad is not None
    got = [row.tolist() for row in policy.grad.split([n + 2 for n in lengths])]
    assert all(row[:2] == [0.0, 0.0] for row in got)
    return parts, [row[2:] for row in got]


# One row: ratios 1.5, 0.5, 1. Range [0.8, 1.28]. The gradient is of the loss, by the log-prob, so minus.
@pytest.mark.parametrize(
    ("name", "advantage", "loss", "gradient"),
    [
        # min(1.5, 1.28), min(0.5, 0.8), 1: the first may not rise further
        ("ppo_clip", 1.0, -(1.28 + 0.5 + 1.0), [0.0, -0.5, -1.0]),
        # -max(1.5, 1.28), -max(0.5, 0.8), -1: the second may not fall further
        ("ppo_clip", -2.0, 2 * (1.5 + 0.8 + 1.0), [3.0, 0.0, 2.0]),
        # weights 1.28, 0.8, 1 on log-probs of -1: every token keeps a gradient
        ("cispo", 1.0, 1.28 + 0.8 + 1.0, [-1.28, -0.8, -1.0]),
        ("cispo", -2.0, -2 * (1.28 + 0.8 + 1.0), [2.56, 1.6, 2.0]),
        ("policy_gradient", 1.0, 3.0, [-1.0, -1.0, -1.0]),
        ("policy_gradient", -2.0, -6.0, [2.0, 2.0, 2.0]),
        # s = (1.5 * 0.5 * 1) ** (1/3) = 0.9086, inside the range; ds / dlog p = s / 3, three tokens
        ("gspo", 1.0, -3 * 0.75 ** (1 / 3), [-(0.75 ** (1 / 3))] * 3),
    ],
)
def test_one_thought_by_hand(
    name: str, advantage: float, loss: float, gradient: list[float]
) -> None:
    parts, (got,) = loss_of(name, [[1.5, 0.5, 1.0]], [advantage])
    assert parts.surrogate == pytest.approx(loss, abs=1e-5)
    assert got == pytest.approx(gradient, abs=1e-5)
    assert parts.num_surrogate == 3
    clipped = {"gspo": 0, "policy_gradient": 0}.get(name, 2)
    assert parts.num_clipped == clipped


def test_gspo_clips_whole_thoughts_of_any_length() -> None:
    """Ratios 2 and 1 have s = sqrt(2), past 1.28: the whole thought has no gradient. 1.1 stays."""
    parts, (long, short) = loss_of("gspo", [[2.0, 1.0], [1.1]], [1.0, 1.0])
    assert parts.surrogate == pytest.approx(-(2 * 1.28 + 1.1), abs=1e-5)
    assert long == [0.0, 0.0]
    assert short == pytest.approx([-1.1])
    assert parts.num_clipped == 2
    assert parts.ratio_max == pytest.approx(math.sqrt(2), abs=1e-5)


def test_the_effective_sample_share_by_hand() -> None:
    """(1.5 + 0.5 + 1 + 3)^2 / (4 (2.25 + 0.25 + 1 + 9)) = 36 / 50, over two micro-batches' sums."""
    parts, _ = loss_of("ppo_clip", [[1.5, 0.5, 1.0], [3.0]], [1.0, 1.0])
    assert parts.importance_sum == pytest.approx(6.0, abs=1e-5)
    assert parts.importance_squares == pytest.approx(12.5, abs=1e-5)
    assert parts.importance_sum**2 / (4 * parts.importance_squares) == pytest.approx(0.72, abs=1e-5)


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_the_importance_correction_is_a_factor_of_every_surrogate(name: str) -> None:
    """Proximal = policy: its ratio is 1, and the factor is min(policy over behaviour, 1.2)."""
    _, (got,) = loss_of(
        name,
        [[1.5, 0.5, 1.0]],
        [1.0],
        proximal_logprobs_M=torch.full((5,), -1.0),
        importance_cap=1.2,
    )
    expected = [-1.2, -0.5, -1.0]
    if name == "gspo":  # one ratio for all: each token's gradient is the mean of the factors
        expected = [sum(expected) / 3] * 3
    assert got == pytest.approx(expected, abs=1e-5)


# Two groups, budget 5, lengths (1, 3) and (2, 4), by hand.
LENGTHS_BG = [[1, 3], [2, 4]]
GOLDEN_WEIGHTS: dict[str, list[list[float]]] = {
    "sequence_mean": [[1 / 4, 1 / 12], [1 / 8, 1 / 16]],
    "token_mean": [[1 / 10, 1 / 10], [1 / 10, 1 / 10]],
    "group_mean": [[1 / 8, 1 / 8], [1 / 12, 1 / 12]],
    "constant": [[1 / 20, 1 / 20], [1 / 20, 1 / 20]],
}
MASKED_BG = [[1, 0], [2, 4], [0, 0]]
GOLDEN_MASKED: dict[str, list[list[float]]] = {
    "sequence_mean": [[1 / 3, 0], [1 / 6, 1 / 12], [0, 0]],
    "token_mean": [[1 / 7, 0], [1 / 7, 1 / 7], [0, 0]],
    "group_mean": [[1 / 2, 0], [1 / 12, 1 / 12], [0, 0]],
    "constant": [[1 / 15, 0], [1 / 15, 1 / 15], [0, 0]],
}


@pytest.mark.parametrize("name", sorted(GOLDEN_WEIGHTS))
def test_aggregations_by_hand(name: str) -> None:
    rlp = objectives.load("rlp")
    for lengths, golden in ((LENGTHS_BG, GOLDEN_WEIGHTS), (MASKED_BG, GOLDEN_MASKED)):
        got = aggregation.weights(name, lengths, 5, rlp.token_weights)
        for got_G, golden_G in zip(got, golden[name], strict=True):
            assert got_G == pytest.approx(golden_G, abs=1e-12)
        if name == "sequence_mean":  # RLP's own is the same
            assert aggregation.weights("", lengths, 5, rlp.token_weights) == got


def test_nothing_to_learn_has_no_weight() -> None:
    for name in GOLDEN_WEIGHTS:
        assert aggregation.weights(name, [], 5, lambda lengths: [1.0]) == []
        assert aggregation.weights(name, [[0, 0]], 5, lambda lengths: [1.0]) == [[0.0, 0.0]]


def trees(results: list[ScoredRollout], aggregation_name: str) -> list[ThoughtTree]:
    section = LearnerSection(aggregation=aggregation_name)  # type: ignore[arg-type]
    builder = BatchBuilder(
        objectives.load("rlp"), estimators.load("leave_one_out"), learner=section
    )
    return builder.build(results).trees


def gradients(language_model: LanguageModel, given: list[ThoughtTree], size: int) -> Any:
    model = language_model.model
    model.zero_grad(set_to_none=True)
    for batch in micro_batches(given, size, torch.device("cpu"), forms_of(model)):
        parts = batch_loss(batch, policy_logprobs(model, batch), clip_low=0.1, clip_high=0.3)
        parts.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_gradients(language_model: LanguageModel, results: list[ScoredRollout], name: str) -> Any:
    """Every token separately, divided according to the aggregation's definition."""
    model = language_model.model
    model.zero_grad(set_to_none=True)
    groups = [
        (r.rollout.task, k, r.rollout.thoughts_KG[k], r.rewards_KG[k])
        for r in results
        for k in range(len(r.rewards_KG))
    ]
    num_thoughts = sum(len(thoughts) for *_, thoughts, _ in groups)
    num_tokens = sum(len(t.token_ids_L) for *_, thoughts, _ in groups for t in thoughts)
    loss = torch.zeros(())
    for task, k, thoughts, rewards in groups:
        context = task.document.token_ids_N[: task.positions_K[k].index] + PROMPTING.bridge_ids
        of_group = sum(len(thought.token_ids_L) for thought in thoughts)
        for i, thought in enumerate(thoughts):
            others = rewards[:i] + rewards[i + 1 :]
            advantage = rewards[i] - sum(others) / len(others)
            logits = model(torch.tensor([context + thought.token_ids_L])).logits[0]
            logprobs = torch.log_softmax(logits.float() / TEMPERATURE, dim=-1)
            for u, token in enumerate(thought.token_ids_L):
                log_ratio = logprobs[len(context) + u - 1, token] - thought.behaviour_logprobs_L[u]
                clipped = log_ratio.exp().clamp(0.9, 1.3)
                gain = torch.minimum(log_ratio.exp() * advantage, clipped * advantage)
                divisor = {
                    "sequence_mean": num_thoughts * len(thought.token_ids_L),
                    "token_mean": num_tokens,
                    "group_mean": len(groups) * of_group,
                    "constant": num_thoughts * task.sampling.max_thought_tokens,
                }[name]
                loss = loss - gain / divisor
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(GOLDEN_WEIGHTS))
def test_normalisation_is_over_the_batch_not_the_micro_batch(
    language_model: LanguageModel, name: str
) -> None:
    results = off_policy(make_results(language_model))
    plain = plain_gradients(language_model, results, name)
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-3
    for size in (1, 10_000):
        ours = gradients(language_model, trees(results, name), size)
        assert ours.keys() == plain.keys()
        assert max(float((ours[n] - plain[n]).abs().max()) for n in plain) < 1e-5


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_the_learner_uses_the_configured_surrogate(
    language_model: LanguageModel, name: str
) -> None:
    """On fresh samples all four have the same gradient; what they report differs."""
    results = make_results(language_model)
    given = trees(results, "")
    learner = Learner(
        language_model,
        LearnerSection(loss=name, learning_rate=1e-12),  # type: ignore[arg-type]
        BaselineSection(kind="none"),
    )
    result = learner.step(given)
    expected = Learner(
        language_model, LearnerSection(learning_rate=1e-12), BaselineSection(kind="none")
    ).step(given)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert (abs(result.loss - expected.loss) > 1e-4) == (name in ("cispo", "policy_gradient"))
    assert result.effective_sample_share == pytest.approx(1.0, abs=1e-5)


def test_stale_samples_have_a_smaller_effective_share(language_model: LanguageModel) -> None:
    results = off_policy(make_results(language_model))
    learner = Learner(
        language_model, LearnerSection(learning_rate=1e-12), BaselineSection(kind="none")
    )
    logprobs = [
        0.4 * math.cos(3 * i)
        for r in results
        for group in r.rollout.thoughts_KG
        for t in group
        for i in range(len(t.token_ids_L))
    ]
    weights = [math.exp(-x) for x in logprobs]
    expected = sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))
    got = learner.step(trees(results, "")).effective_sample_share
    assert got == pytest.approx(expected, abs=1e-4)
    assert got < 0.95


def test_a_truncated_thought_counts_by_its_tokens_too(language_model: LanguageModel) -> None:
    """Only the filter masks: with `keep` a truncated thought is learned like any other."""
    results = make_results(language_model)
    cut = [
        replace(
            r,
            rollout=replace(
                r.rollout,
                thoughts_KG=tuple(
                    tuple(replace(t, closed=False) for t in group)
                    for group in r.rollout.thoughts_KG
                ),
            ),
        )
        for r in results
    ]
    assert trees(cut, "token_mean") == trees(results, "token_mean")
