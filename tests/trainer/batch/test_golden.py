"""The papers' statements about expectations, summed over an enumerable vocabulary instead of sampled.

Golden cases of single parts are elsewhere: byte prefixes in ``test_rpt`` and ``test_match``;
estimators in ``test_estimators`` and ``objectives/test_objectives``; surrogates and aggregations in
``test_surrogates``; filters and overlong thoughts in ``test_filters``; entropies in ``test_curation``;
RLP's rewards, and where the baseline cancels in gradients, in ``test_rewards_of_rlp``; targets of several
tokens in ``test_scoring`` and ``test_lesson``; answer NLL in ``test_lesson``; the float32 head in
``test_fp32_head``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from forethought import estimators, objectives
from forethought.compute.entropy import EntropyQuery, entropies
from forethought.compute.logprob import Continuation, score_continuations
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.objectives import Group
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from tests import tiny  # noqa: F401  # one thread: tensors here are tiny
from trainer.batch.builder import BatchBuilder
from trainer.batch.thought_tree import ThoughtTree
from trainer.learner.batching import micro_batches
from trainer.learner.ema import Baseline
from trainer.learner.loss import batch_loss, policy_logprobs

# The whole vocabulary: two words and the think markers.
VOCAB, OPEN, CLOSE = 4, 2, 3
CONTEXT = (0, 1, 1)
BUDGET = 2


def tiny_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny_model(2)  # a quarter of its thoughts close at once


def next_logprobs(model: Any, ids: tuple[int, ...], without: int | None = None) -> torch.Tensor:
    """log p of every next token, in float64, plainly."""
    logits = model(torch.tensor([ids])).logits[0, -1].double()
    if without is not None:
        logits = logits.index_fill(0, torch.tensor([without]), -math.inf)
    return torch.log_softmax(logits, dim=-1)


def all_thoughts() -> list[tuple[int, ...]]:
    """Every thought of at most :data:`BUDGET` tokens: ended by a close token, or truncated."""
    words = [token for token in range(VOCAB) if token != CLOSE]
    return [(CLOSE,), *itertools.product(words, range(VOCAB))]


def thought_logprob(model: Any, thought: tuple[int, ...]) -> torch.Tensor:
    prefix = (*CONTEXT, OPEN)
    terms = [next_logprobs(model, prefix + thought[:u])[token] for u, token in enumerate(thought)]
    return torch.stack(terms).sum()


def answer_prefix(thought: tuple[int, ...]) -> tuple[int, ...]:
    closed = thought if thought[-1] == CLOSE else (*thought, CLOSE)
    return (*CONTEXT, OPEN, *closed)


def scored_gain(policy: Any, baseline: Any, thought: tuple[int, ...], target: int) -> float:
    """The reward as the scorer and RLP compute it."""
    thinking = Continuation(answer_prefix(thought), (target,))
    plain = Continuation(CONTEXT, (target,), removed_id=OPEN)
    with_thought = score_continuations(policy, [thinking], 1000)[0].total
    without = score_continuations(baseline, [plain], 1000)[0].total
    sampled = Thought(thought, (-1.0,) * len(thought), (), closed=thought[-1] == CLOSE)
    return objectives.load("rlp").rewards(Group((target,), (sampled,), (with_thought,), without))[0]


TRUTH = {0: 0.7, 1: 0.25, CLOSE: 0.05}
"""p*, the distribution of the next token of the text, which never opens a thought."""


@torch.no_grad()
@pytest.mark.parametrize("thought", all_thoughts())
def test_rlp_proposition_1(policy: Any, thought: tuple[int, ...]) -> None:
    """E over x ~ p* of the reward is CE(p*, baseline) - CE(p*, policy after the thought)."""
    baseline = tiny_model(1)
    expected_reward = sum(
        share * scored_gain(policy, baseline, thought, target) for target, share in TRUTH.items()
    )
    without = next_logprobs(baseline, CONTEXT, without=OPEN)
    after = next_logprobs(policy, answer_prefix(thought))
    cross_entropies = [
        -sum(share * float(logprobs[target]) for target, share in TRUTH.items())
        for logprobs in (without, after)
    ]
    assert expected_reward == pytest.approx(cross_entropies[0] - cross_entropies[1], abs=1e-6)
    assert abs(expected_reward) > 1e-3


@torch.no_grad()
def test_every_thought_is_enumerated(policy: Any) -> None:
    assert len(all_thoughts()) == len(set(all_thoughts())) == 13
    total = sum(float(thought_logprob(policy, thought).exp()) for thought in all_thoughts())
    assert total == pytest.approx(1.0, abs=1e-9)


@dataclass(frozen=True)
class World:
    """Every thought about one target that the policy can sample, with its probability and reward."""

    policy: Any
    thoughts: tuple[Thought, ...]
    shares: tuple[float, ...]
    rewards: tuple[float, ...]


@pytest.fixture(scope="module")
def world(policy: Any) -> World:
    baseline, thoughts, shares = tiny_model(1), [], []
    for ids in all_thoughts():
        with torch.no_grad():
            logprobs = tuple(
                float(next_logprobs(policy, (*CONTEXT, OPEN, *ids[:u]))[token])
                for u, token in enumerate(ids)
            )
        spans = (VersionSpan(0, len(ids)),)
        thoughts.append(Thought(ids, logprobs, spans, closed=ids[-1] == CLOSE))
        shares.append(math.exp(sum(logprobs)))
    rewards = tuple(scored_gain(policy, baseline, ids, target=1) for ids in all_thoughts())
    return World(policy, tuple(thoughts), tuple(shares), rewards)


def group_of(world: World, chosen: tuple[int, ...]) -> ScoredRollout:
    """The result if the policy had sampled exactly these thoughts."""
    task = Task(
        0, 1, 0, 0, "rlp", "{}", Document("d", "s", (*CONTEXT, 1)),
        (Position(len(CONTEXT), (1,)),), Prompting((), (OPEN,), (CLOSE,)),
        Sampling(len(chosen), BUDGET, 1.0, (CLOSE,)), seed=0,
    )  # fmt: skip
    thoughts_G = tuple(world.thoughts[i] for i in chosen)
    rewards_G = tuple(world.rewards[i] for i in chosen)
    return ScoredRollout(Rollout(task, (thoughts_G,)), (rewards_G,), (rewards_G,), (0.0,))


def flat_gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def expected_gradient(world: World, estimator: str, aggregation: Any, loss: str) -> torch.Tensor:
    """The learner's gradient of a batch of one group, in expectation over every group of two thoughts.

    All groups are one training batch, in which each is weighted by its probability, not by an equal share.
    """
    section = LearnerSection(aggregation=aggregation)
    builder = BatchBuilder(objectives.load("rlp"), estimators.load(estimator), learner=section)
    pairs = list(itertools.product(range(len(world.thoughts)), repeat=2))
    trees = builder.build([group_of(world, pair) for pair in pairs]).trees
    factors = [len(pairs) * world.shares[i] * world.shares[j] for i, j in pairs]
    weighted = [weighed(tree, factor) for tree, factor in zip(trees, factors, strict=True)]
    world.policy.zero_grad(set_to_none=True)
    for batch in micro_batches(weighted, 4096, torch.device("cpu")):
        logprobs = policy_logprobs(world.policy, batch)
        batch_loss(batch, logprobs, clip_low=0.2, clip_high=0.28, surrogate=loss).loss.backward()
    return flat_gradient(world.policy)


def weighed(tree: ThoughtTree, factor: float) -> ThoughtTree:
    branches = tuple(
        replace(branch, weights_T=tuple(factor * weight for weight in branch.weights_T))
        for branch in tree.branches
    )
    return replace(tree, branches=branches)


def gradient_of_the_expected_reward(world: World) -> torch.Tensor:
    """Of the sum over all thoughts of p(c) r(c), r a constant as in eq. 5; a loss is its negative."""
    world.policy.zero_grad(set_to_none=True)
    terms = [
        thought_logprob(world.policy, thought.token_ids_L).exp() * reward
        for thought, reward in zip(world.thoughts, world.rewards, strict=True)
    ]
    (-torch.stack(terms).sum()).backward()
    return flat_gradient(world.policy)


@pytest.mark.parametrize("loss", ["ppo_clip", "cispo", "policy_gradient"])
def test_leave_one_out_is_an_unbiased_policy_gradient(world: World, loss: str) -> None:
    """Eq. 7 over a constant divisor (Dr. GRPO's) is the gradient of E[r], divided by the budget."""
    truth = gradient_of_the_expected_reward(world)
    assert float(truth.abs().max()) > 1e-2
    ours = BUDGET * expected_gradient(world, "leave_one_out", "constant", loss)
    assert float((ours - truth).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("estimator", "aggregation"),
    [
        ("group_std", "constant"),  # a group's own deviation depends on its thoughts
        ("leave_one_out", "sequence_mean"),  # eq. 8 as published: 1/|c| favours short thoughts
    ],
)
def test_other_divisors_are_another_gradient(
    world: World, estimator: str, aggregation: str
) -> None:
    """Otherwise the test above would prove nothing."""
    truth = gradient_of_the_expected_reward(world)
    ours = BUDGET * expected_gradient(world, estimator, aggregation, "ppo_clip")
    assert float((ours - truth).abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ema", "frozen", "none"])
def test_the_gain_is_relative_to_the_configured_baseline(kind: Any) -> None:
    """After updates to theta_1, 2, 3: the average in closed form, theta_0, or theta_3 itself."""
    decay, steps = 0.6, [tiny_model(seed) for seed in (0, 5, 6, 7)]
    thetas = [dict(model.named_parameters()) for model in steps]
    baseline = Baseline(BaselineSection(kind=kind, decay=decay), thetas[0])
    for theta in thetas[1:]:
        baseline.update(theta)
    assert baseline.exists == (kind != "none")
    shares = {
        "ema": [decay**3, (1 - decay) * decay**2, (1 - decay) * decay, 1 - decay],
        "frozen": [1.0, 0.0, 0.0, 0.0],
        "none": [0.0, 0.0, 0.0, 1.0],
    }[kind]
    by_hand, ours = tiny_model(8), tiny_model(9)
    for name, parameter in by_hand.named_parameters():
        parameter.copy_(sum(s * theta[name] for s, theta in zip(shares, thetas, strict=True)))
    tensors = baseline.tensors or thetas[-1]  # the scorer's policy stands in
    for name, parameter in ours.named_parameters():
        parameter.copy_(tensors[name])
    thought, target = (0, CLOSE), 1
    after = float(next_logprobs(steps[-1], answer_prefix(thought))[target])
    without = float(next_logprobs(by_hand, CONTEXT, without=OPEN)[target])
    assert scored_gain(steps[-1], ours, thought, target) == pytest.approx(after - without, abs=1e-5)


# p(target | thought) by group, and the baselines' p(target): one moves the groups by different amounts.
POLICY_BG = ((1 / 2, 1 / 8, 1 / 4), (1 / 4, 1 / 3, 1 / 9))
BASELINES_B = ((1 / 4, 1 / 8), (1 / 16, 1 / 3))


@pytest.mark.parametrize(
    ("parameters", "estimator", "knows"),
    [
        ({}, "leave_one_out", False),
        ({}, "group_std", False),
        ({"reward": "logprob"}, "leave_one_out", False),
        ({"reward": "probability"}, "none", False),
        ({}, "none", True),
        ({}, "batch_std", True),
        ({}, "batch_zscore", True),
        ({"transform": "floor"}, "leave_one_out", True),
        ({"transform": "clip"}, "leave_one_out", True),
        ({"transform": "threshold"}, "leave_one_out", True),
        ({"transform": "threshold"}, "group_std", True),
    ],
)
def test_which_advantages_depend_on_the_baseline(
    parameters: dict[str, Any], estimator: str, knows: bool
) -> None:
    rlp = objectives.load("rlp", parameters)
    thoughts_G = (Thought((7,), (-0.1,), (VersionSpan(0, 1),), closed=True),) * 3
    advantages = []
    for baselines_B in BASELINES_B:
        rewards_BG = [
            rlp.rewards(Group((1,), thoughts_G, tuple(map(math.log, of_group)), math.log(p)))
            for of_group, p in zip(POLICY_BG, baselines_B, strict=True)
        ]
        advantages_BG = estimators.load(estimator).advantages(rewards_BG)
        advantages.append([a for advantages_G in advantages_BG for a in advantages_G])
    assert any(advantages[0])
    same = advantages[0] == pytest.approx(advantages[1], abs=1e-6)
    assert same is not knows


@torch.no_grad()
def test_with_a_vocabulary_smaller_than_k_the_entropy_is_exact(policy: Any) -> None:
    """RPT's 16 likeliest tokens are the whole vocabulary, so renormalising changes nothing."""
    ids = (0, 1, 1, 0, 2, 1)
    whole = []
    for size in range(1, len(ids)):
        p = next_logprobs(policy, ids[:size]).exp().tolist()
        whole.append(-sum(x * math.log(x) for x in p))
    for renormalise in (False, True):
        (got,) = entropies(policy, [EntropyQuery(ids, 16, renormalise)], 1000)
        assert got == pytest.approx(whole, abs=1e-6)
    (least,) = entropies(policy, [EntropyQuery(ids, 1, True)], 1000)
    assert least == pytest.approx([0.0] * 5, abs=1e-12)
