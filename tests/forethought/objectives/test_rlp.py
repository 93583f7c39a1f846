"""RLP's reward variants by hand, and where the no-think baseline cancels and where it does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.logprob import Continuation, score_continuations
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.errors import InvalidInput
from forethought.objectives import Group, Objective
from forethought.types import ScoredRollout, Task, Thought, VersionSpan
from tests import tiny
from tests.scored import make_results
from trainer.batch.builder import BatchBuilder
from trainer.learner.batching import micro_batches
from trainer.learner.learner import Learner
from trainer.learner.loss import batch_loss, policy_logprobs

THOUGHT = Thought((7,), (-0.1,), (VersionSpan(0, 1),), closed=True)
LN2 = math.log(2)
# p(target | thought) = 1/2, 1/8, 1/32 and p(target) = 1/8: gains ln 4, 0, -ln 4.
GROUP = Group((42,), (THOUGHT,) * 3, (-LN2, -3 * LN2, -5 * LN2), -3 * LN2)


@pytest.mark.parametrize(
    ("parameters", "golden"),
    [
        ({}, (2 * LN2, 0.0, -2 * LN2)),
        ({"reward": "logprob"}, (-LN2, -3 * LN2, -5 * LN2)),
        ({"reward": "probability"}, (1 / 2, 1 / 8, 1 / 32)),
        ({"transform": "floor"}, (2 * LN2, 0.0, 0.0)),
        ({"transform": "clip"}, (1.0, 0.0, -1.0)),
        ({"transform": "clip", "clip_nats": 1.25}, (1.25, 0.0, -1.25)),
        ({"transform": "threshold"}, (1.0, 0.0, 0.0)),
        ({"transform": "threshold", "threshold": -0.1}, (1.0, 1.0, 0.0)),
        ({"reward": "probability", "transform": "threshold", "threshold": 0.1}, (1.0, 1.0, 0.0)),
        ({"reward": "logprob", "transform": "clip", "clip_nats": 2.5}, (-LN2, -3 * LN2, -2.5)),
    ],
)
def test_rewards_by_hand(parameters: dict[str, Any], golden: tuple[float, ...]) -> None:
    assert objectives.load("rlp", parameters).rewards(GROUP) == pytest.approx(golden, abs=1e-12)


@pytest.mark.parametrize(
    "parameters",
    [
        {"reward": "logprob", "transform": "floor"},
        {"reward": "probability", "floor_until_batch": 5},
    ],
)
def test_a_floor_under_a_reward_of_one_sign_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"has one sign.*reward = .gain."):
        objectives.load("rlp", parameters)


@pytest.mark.parametrize("then", ["identity", "clip"])
def test_tasks_carry_the_floor_until_its_batch(then: str) -> None:
    """The scorer sees the task's own parameters and no step."""
    rlp = objectives.load("rlp", {"floor_until_batch": 3, "transform": then})
    carried = [rlp.of_batch(batch).config for batch in range(6)]
    assert [config.transform for config in carried] == ["floor"] * 3 + [then] * 3
    assert {config.floor_until_batch for config in carried} == {0}
    reloaded = objectives.load("rlp", carried[0].model_dump())
    assert reloaded.rewards(GROUP) == pytest.approx((2 * LN2, 0.0, 0.0))
    assert objectives.load("rlp").of_batch(0).config == objectives.load("rlp").config


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A policy a few steps from its start, with the three baselines that go with it.

    ``none`` is the current policy itself, as the scorer does it.
    """
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("model") / "model")
    models: dict[str, Any] = {}
    for kind in ("ema", "frozen", "none"):
        policy = load_language_model(directory, "float32", "cpu")
        section = LearnerSection(learning_rate=3e-3)
        learner = Learner(policy, section, BaselineSection(kind=kind, decay=0.7))  # type: ignore[arg-type]
        start = load_language_model(directory, "float32", "cpu")
        for _ in range(4):
            learner.step(recipe_of({}).build(make_results(start)).trees)
        if kind == "none":
            models["none"] = policy
        else:
            baseline = load_language_model(directory, "float32", "cpu")
            baseline.model.load_state_dict(learner.baseline.tensors, strict=False)
            models[kind] = baseline
        models["policy"] = policy
    return models


def recipe_of(parameters: dict[str, Any], estimator: str = "leave_one_out") -> BatchBuilder:
    return BatchBuilder(objectives.load("rlp", parameters), estimators.load(estimator))


def no_think(language_model: LanguageModel, task: Task, k: int) -> float:
    position = task.positions_K[k]
    context = task.document.token_ids_N[: position.index]
    query = Continuation(context, position.target_ids_H, removed_id=tiny.OPEN_ID)
    return score_continuations(language_model.model, [query], 1000)[0].total


def scored(objective: Objective, moved: dict[str, Any], kind: str) -> list[ScoredRollout]:
    """The current policy's thoughts, its likelihoods, and the rewards against one of the baselines."""
    results = []
    for result in make_results(moved["policy"]):
        task, thoughts_KG = result.rollout.task, result.rollout.thoughts_KG
        rewards_KG = []
        for k, thoughts_G in enumerate(thoughts_KG):
            position = task.positions_K[k]
            opened = task.document.token_ids_N[: position.index] + task.prompting.bridge_ids
            queries = [
                Continuation(
                    opened + t.token_ids_L + task.prompting.close_ids[t.closed :],
                    position.target_ids_H,
                )
                for t in thoughts_G
            ]
            policy = [s.total for s in score_continuations(moved["policy"].model, queries, 1000)]
            group = Group(
                position.target_ids_H, thoughts_G, tuple(policy), no_think(moved[kind], task, k)
            )
            rewards_KG.append(objective.rewards(group))
        results.append(replace(result, rewards_KG=tuple(rewards_KG)))
    return results


def gradients(
    moved: dict[str, Any], kind: str, parameters: dict[str, Any], estimator: str = "leave_one_out"
) -> torch.Tensor:
    model = moved["policy"].model
    model.zero_grad(set_to_none=True)
    builder = recipe_of(parameters, estimator)
    results = scored(builder.objective, moved, kind)
    for batch in micro_batches(builder.build(results).trees, 4096, torch.device("cpu")):
        batch_loss(
            batch, policy_logprobs(model, batch), clip_low=0.2, clip_high=0.28
        ).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def test_the_baselines_differ(moved: dict[str, Any]) -> None:
    """Or the tests below would show nothing."""
    task = make_results(moved["policy"])[0].rollout.task
    values = [no_think(moved[kind], task, 0) for kind in ("ema", "frozen", "none")]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-2


def test_the_baseline_cancels_in_published_rlp(moved: dict[str, Any]) -> None:
    """Algorithm 1: EMA, frozen, current or no baseline at all: one gradient."""
    ema = gradients(moved, "ema", {})
    assert float(ema.abs().max()) > 1e-2
    assert difference(ema, gradients(moved, "frozen", {})) < 1e-6
    assert difference(ema, gradients(moved, "none", {})) < 1e-6
    assert difference(ema, gradients(moved, "ema", {"reward": "logprob"})) < 1e-6


@pytest.mark.parametrize(
    ("parameters", "estimator"),
    [
        ({"transform": "floor"}, "leave_one_out"),
        ({"transform": "clip", "clip_nats": 0.5}, "leave_one_out"),
        ({}, "none"),
        ({}, "batch_zscore"),
        ({}, "batch_std"),
    ],
)
def test_the_baseline_matters_where_something_is_not_linear_or_not_centred(
    moved: dict[str, Any], parameters: dict[str, Any], estimator: str
) -> None:
    ema, frozen, current = (
        gradients(moved, kind, parameters, estimator) for kind in ("ema", "frozen", "none")
    )
    assert difference(ema, frozen) > 1e-4
    assert difference(ema, current) > 1e-4


def test_a_probability_knows_no_baseline_and_is_another_gradient(moved: dict[str, Any]) -> None:
    probability = {"reward": "probability"}
    ema = gradients(moved, "ema", probability)
    assert difference(ema, gradients(moved, "frozen", probability)) == 0.0
    assert difference(ema, gradients(moved, "ema", {})) > 1e-3
