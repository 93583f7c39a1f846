"""Gradients of trees whose rows share contexts equal those of separate rows, for every architecture."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from forethought.compute.model import LanguageModel
from forethought.config.sections import BaselineSection, LearnerSection
from tests import architectures, tiny
from tests.forethought.compute import separate_rows
from trainer.batch.thought_tree import Branch, ThoughtTree
from trainer.learner.learner import Learner

# The gradients are read after the step, which must not move the weights of the reference.
SECTION = LearnerSection(
    micro_batch_tokens=256, learning_rate=1e-30, grad_clip_norm=0.0, loss="policy_gradient"
)
TEMPERATURE = 0.7
TOLERANCE = 1e-5

# Of models whose modules compile or script something on their way.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

_DRAW = random.Random(0)


def _ids(num_tokens: int) -> tuple[int, ...]:
    return tuple(_DRAW.choices(range(2, tiny.NUM_BYTES), k=num_tokens))


def _values(num_tokens: int) -> tuple[float, ...]:
    return tuple(_DRAW.uniform(-1.0, 1.0) for _ in range(num_tokens))


BRIDGE_IDS = (*_ids(1), tiny.OPEN_ID)
DOCUMENT = _ids(34)  # longer than every window, and past the boundary of the longrope models


def _branch(index: int, num_thought_tokens: int, num_targets: int = 0) -> Branch:
    """Bridge, a thought and its close with a surrogate, and a target with next-token weights."""
    num, targets = num_thought_tokens + 1, _ids(num_targets)
    before, after = (0.0,) * len(BRIDGE_IDS), (0.0,) * num_targets
    return Branch(
        index,
        BRIDGE_IDS + _ids(num_thought_tokens) + (tiny.CLOSE_ID,) + targets,
        before + _values(num) + after,
        before + _values(num) + after,
        before + tuple(-abs(value) for value in _values(num)) + after,
        TEMPERATURE,
        before + (0.0,) * num + _values(num_targets) if num_targets else (),
    )


def _trees() -> list[ThoughtTree]:
    """Two documents that begin alike, with and without a head, and one without thoughts."""
    first = [_branch(index, num) for index in (2, 13, 32) for num in (1, 7)]
    second = [_branch(index, num, 2) for index, num in ((0, 2), (20, 5), (29, 3), (29, 1))]
    other = DOCUMENT[:9] + _ids(20)
    alone = Branch(11, (7,), (0.5,), (1.0,), (-1.0,), 1.0)
    return [
        ThoughtTree((), DOCUMENT, (0.0, *_values(33)), (*first, first[3], alone)),
        ThoughtTree(DOCUMENT[:3], other, (), tuple(second)),
        ThoughtTree((), _ids(1) + other, (0.0,) * 25 + _values(5), (second[2],)),
        ThoughtTree(DOCUMENT[:2], DOCUMENT[2:], _values(32)),
        ThoughtTree((), _ids(3), (), (_branch(1, 3),)),
    ]


TREES = _trees()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def add_separate_gradients(model: Any, tree: ThoughtTree) -> None:
    """Backward of -sum w A log p at the sampling temperature and of the next-token loss, row by row."""
    for branch in tree.branches:
        row = tree.head_ids + tree.trunk_ids_N[: branch.index] + branch.token_ids_T
        num = len(branch.token_ids_T)
        logprobs = separate_rows.row_logprobs(model, row, branch.temperature)[-num:]
        weights = torch.tensor(branch.weights_T) * torch.tensor(branch.advantages_T)
        loss = -(weights * logprobs).sum()
        if branch.nll_weights_T:
            logprobs = separate_rows.row_logprobs(model, row)[-num:]
            loss = loss - (torch.tensor(branch.nll_weights_T) * logprobs).sum()
        loss.backward()
    if any(tree.nll_weights_N):
        logprobs = separate_rows.row_logprobs(model, tree.head_ids + tree.trunk_ids_N)
        num = min(len(logprobs), len(tree.nll_weights_N))
        (-(torch.tensor(tree.nll_weights_N)[-num:] * logprobs[-num:]).sum()).backward()


@pytest.fixture(scope="module", params=architectures.EVERY)
def language_model(request: pytest.FixtureRequest) -> LanguageModel:
    return architectures.prepared(request.param)


def test_gradients_are_those_of_separate_rows(language_model: LanguageModel) -> None:
    model = language_model.model
    for tree in TREES:
        add_separate_gradients(model, tree)
    expected = gradients(model)
    result = Learner(language_model, SECTION, BaselineSection(kind="none")).step(TREES)
    found = gradients(model)
    assert not result.skipped
    assert found.keys() == expected.keys()
    norm = float(torch.nn.utils.get_total_norm(expected.values()))
    for name, gradient in found.items():
        scale = max(float(expected[name].norm()), 0.01 * norm)
        assert float((gradient - expected[name]).norm()) < TOLERANCE * scale, name
