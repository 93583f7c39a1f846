"""The example against plain transformers, and against the system whose parts it stands for."""

from __future__ import annotations

import copy
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.answers import Query
from forethought.compute.model import LanguageModel, Markers, find_markers, load_language_model
from forethought.compute.sampling import Sample
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.objectives import Group
from forethought.types import (
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from tests import tiny  # noqa: F401  # sets one torch thread: tensors here are tiny
from tests.repository import ROOT
from trainer.batch.builder import BatchBuilder
from trainer.learner.learner import Learner

EXAMPLE = ROOT / "examples" / "rlp_loop.py"
SMALL = {
    "BATCH_DOCUMENTS": 5,
    "GROUP_SIZE": 3,
    "MAX_THOUGHT_TOKENS": 4,  # some thoughts run out of it
    "BASELINE_DECAY": 0.75,  # moves enough to be seen
    "GRAD_CLIP_NORM": 0.3,  # clips the second of three steps
}


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, with other sizes."""
    spec = importlib.util.spec_from_file_location("rlp_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for name, value in SMALL.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def language_model(loop: ModuleType) -> LanguageModel:
    return load_language_model(loop.base_model(), "float32", "cpu")


@pytest.fixture
def markers(loop: ModuleType, language_model: LanguageModel) -> Markers:
    return find_markers(language_model.tokenizer, loop.THINK_OPEN, loop.THINK_CLOSE)


def around(markers: Markers) -> Prompting:
    """The markers alone."""
    return Prompting(bridge_ids=markers.open_ids, close_ids=markers.close_ids)


@pytest.fixture
def queries_B(loop: ModuleType, language_model: LanguageModel) -> list[Query]:
    """Answers, and any positions; of one document the second token, whose context is shortest."""
    stream = list(loop.read_documents(language_model.tokenizer, 8, seed=5))
    rng = Random(0)
    answers = [loop.draw_position(document, "marked", rng) for document in stream[:4]]
    anywhere = [loop.draw_position(document, "uniform", rng) for document in stream[4:]]
    second = Position(1, stream[0].token_ids_N[1:2])
    return [*answers, *anywhere, Query(stream[0], second)]


def changed(model: Any) -> Any:
    """A model that is near and not the same."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return other


def context_of(query: Query) -> tuple[int, ...]:
    return query.document.token_ids_N[: query.position.index]


def thoughts_of(thoughts_G: list[Sample], version: int = 0) -> tuple[Thought, ...]:
    """As they travel in the system."""
    return tuple(
        Thought(s.token_ids_L, s.logprobs_L, (VersionSpan(version, len(s.token_ids_L)),), s.stopped)
        for s in thoughts_G
    )


@torch.no_grad()
def plain_rewards(
    policy: Any, baseline: Any, query: Query, thoughts_G: list[Sample], markers: Markers
) -> tuple[float, ...]:
    """The objective's rewards of log-probs that transformers alone computed, a row at a time."""

    def next_logprobs(model: Any, ids: tuple[int, ...]) -> list[float]:
        logprobs: list[float] = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).tolist()
        return logprobs

    (target,) = query.position.target_ids_H
    plain = next_logprobs(baseline, context_of(query))
    without = plain[target] - math.log1p(-math.exp(plain[markers.open_ids[0]]))
    thinking = []
    for thought in thoughts_G:
        ids = (*context_of(query), *markers.open_ids, *thought.token_ids_L)
        closed = ids if ids[-1:] == markers.close_ids else (*ids, *markers.close_ids)
        thinking.append(next_logprobs(policy, closed)[target])
    group = Group((target,), thoughts_of(thoughts_G), tuple(thinking), without)
    return objectives.load("rlp").rewards(group)


def test_rewards_are_those_of_plain_transformers(
    loop: ModuleType, language_model: LanguageModel, markers: Markers, queries_B: list[Query]
) -> None:
    policy, baseline = language_model.model, changed(language_model.model)
    thoughts_BG = loop.sample_thoughts(policy, queries_B, around(markers), seed=1, version=0)
    rewards_BG = loop.rewards(
        loop.score_thoughts(policy, queries_B, thoughts_BG, around(markers)),
        loop.score_no_think(baseline, queries_B, around(markers)),
    )
    stopped = {thought.stopped for thoughts_G in thoughts_BG for thought in thoughts_G}
    assert stopped == {True, False}
    for query, thoughts_G, rewards_G in zip(queries_B, thoughts_BG, rewards_BG, strict=True):
        expected = plain_rewards(policy, baseline, query, thoughts_G, markers)
        assert rewards_G.tolist() == pytest.approx(expected, abs=1e-5)


def naive_loss(
    policy: Any,
    queries_B: list[Query],
    thoughts_BG: list[list[Sample]],
    rewards_BG: list[list[float]],
    markers: Markers,
) -> torch.Tensor:
    """RLP eq. 7 and 8 written out: one forward pass per thought, one sum per token."""
    loss = torch.zeros(())
    for query, thoughts_G, rewards_G in zip(queries_B, thoughts_BG, rewards_BG, strict=True):
        prefix = (*context_of(query), *markers.open_ids)
        for g, thought in enumerate(thoughts_G):
            others = [reward for other, reward in enumerate(rewards_G) if other != g]
            advantage = rewards_G[g] - sum(others) / len(others)
            logits = policy(torch.tensor([prefix + thought.token_ids_L])).logits[0]
            logprobs = logits.log_softmax(dim=-1)
            for u, token in enumerate(thought.token_ids_L):
                ratio = (logprobs[len(prefix) - 1 + u, token] - thought.logprobs_L[u]).exp()
                clipped = ratio.clamp(1 - 0.2, 1 + 0.28)
                least = torch.minimum(ratio * advantage, clipped * advantage)
                loss = loss - least / len(thought.token_ids_L)
    return loss / sum(map(len, rewards_BG))


def gradient(policy: Any, loss: torch.Tensor) -> torch.Tensor:
    policy.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def test_its_gradient_is_that_of_a_naive_loop(
    loop: ModuleType, language_model: LanguageModel, markers: Markers, queries_B: list[Query]
) -> None:
    """Of thoughts that another policy sampled, so that ratios leave 1 and are clipped."""
    policy = language_model.model
    thoughts_BG = loop.sample_thoughts(
        changed(policy), queries_B, around(markers), seed=1, version=0
    )
    rewards_BG = [[math.sin(2 * b + 5 * g) for g in range(3)] for b in range(len(queries_B))]
    advantages_BG = loop.advantages(torch.tensor(rewards_BG))
    loss = loop.surrogate_loss(policy, queries_B, thoughts_BG, advantages_BG, around(markers))
    expected = naive_loss(policy, queries_B, thoughts_BG, rewards_BG, markers)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    naive = gradient(policy, expected)
    assert float(naive.abs().max()) > 1e-2
    assert float((gradient(policy, loss) - naive).abs().max()) < 1e-5


def recorded(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> list[tuple[Any, ...]]:
    """Arguments and results, one tuple a call, of a function that goes on as it did."""
    calls: list[tuple[Any, ...]] = []
    function: Callable[..., Any] = getattr(module, name)

    def recording(*arguments: Any) -> Any:
        result = function(*arguments)
        calls.append((*arguments, result))
        return result

    monkeypatch.setattr(module, name, recording)
    return calls


def scored_rollout(
    query: Query,
    thoughts_G: list[Sample],
    rewards_G: tuple[float, ...],
    markers: Markers,
    version: int,
) -> ScoredRollout:
    """What would come back to the learner."""
    prompting = around(markers)
    sampling = Sampling(len(thoughts_G), 4, 1.0, markers.close_ids)
    task = Task(
        0, 1, version, version, "rlp", "{}", query.document, (query.position,), prompting, sampling, 0
    )  # fmt: skip
    rollout = Rollout(task, (thoughts_of(thoughts_G, version),))
    return ScoredRollout(rollout, (rewards_G,), (rewards_G,), (0.0,))


def test_its_steps_are_those_of_the_system(
    loop: ModuleType,
    language_model: LanguageModel,
    markers: Markers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rewards, policy and baseline of three steps, if the learner is given the loop's thoughts."""
    section = LearnerSection(learning_rate=loop.LEARNING_RATE, grad_clip_norm=loop.GRAD_CLIP_NORM)
    theirs = replace(language_model, model=copy.deepcopy(language_model.model))
    learner = Learner(theirs, section, BaselineSection(decay=loop.BASELINE_DECAY))
    builder = BatchBuilder(
        objectives.load("rlp"), estimators.load("leave_one_out"), learner=section
    )
    start = {name: tensor.clone() for name, tensor in learner.baseline.tensors.items()}
    baseline = copy.deepcopy(theirs.model)

    seeds = recorded(monkeypatch, loop, "derive_seed")
    sampled = recorded(monkeypatch, loop, "sample_thoughts")
    rewarded = recorded(monkeypatch, loop, "rewards")
    averaged = recorded(monkeypatch, loop, "update_baseline")
    stream = loop.read_documents(language_model.tokenizer, 15, seed=0)
    loop.train(language_model.model, stream, around(markers), steps=3, positions="uniform", seed=1)
    assert len({seed for *_, seed in seeds}) == 3 * 5 * 3  # one a thought
    for version in range(3):
        _, queries_B, *_, thoughts_BG = sampled[version]
        *_, rewards_BG = rewarded[version]
        baseline.load_state_dict(learner.baseline.tensors)
        results = []
        for query, thoughts_G, rewards_G in zip(queries_B, thoughts_BG, rewards_BG, strict=True):
            expected = plain_rewards(learner.model, baseline, query, thoughts_G, markers)
            assert rewards_G.tolist() == pytest.approx(expected, abs=1e-4)
            results.append(scored_rollout(query, thoughts_G, expected, markers, version))
        assert not learner.step(builder.build(results).trees).skipped

    loops_baseline, policy, _ = averaged[-1]
    assert policy is language_model.model
    assert distance(policy, start) > 3e-4
    assert distance(policy, dict(learner.model.named_parameters())) < 2e-5
    assert distance(loops_baseline, start) > 1e-4
    assert distance(loops_baseline, learner.baseline.tensors) < 2e-5


@torch.no_grad()
def distance(model: Any, tensors: dict[str, torch.Tensor]) -> float:
    """The largest difference between two weights of a name."""
    return max(float((p - tensors[name]).abs().max()) for name, p in model.named_parameters())


def test_it_learns(
    loop: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out answers after a thought, before and after a few steps; without one nothing changes."""
    sizes = {"BATCH_DOCUMENTS": 16, "GROUP_SIZE": 8, "MAX_THOUGHT_TOKENS": 9}
    for name, value in (sizes | {"NUM_HELDOUT_DOCUMENTS": 96}).items():
        monkeypatch.setattr(loop, name, value)
    assert loop.main(["--steps", "12"]) == 0
    printed = capsys.readouterr().out
    before, after = (
        [float(number) for number in re.findall(r"-?[\d.]+", line)]
        for line in printed.splitlines()[-2:]
    )
    think_accuracy, no_think_accuracy, _, _, gain, _ = (
        b - a for a, b in zip(before, after, strict=True)
    )
    assert think_accuracy > 0.05
    assert gain > 0.15
    assert abs(no_think_accuracy) < 0.05


def test_its_map_names_functions_of_its_own_and_files_of_the_system(loop: ModuleType) -> None:
    lines = re.findall(
        r"^    ([a-z_]*),? +((?:forethought|services|trainer)/\S+)", loop.__doc__ or "", re.M
    )
    named = [name for name, _ in lines if name]
    assert len(named) >= 7
    assert [name for name in named if not callable(getattr(loop, name, None))] == []
    assert [path for _, path in lines if not (ROOT / path).exists()] == []
