"""Next-token loss on thoughts, answers and documents, against plain loops over a tiny model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.forms import forms_of
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config.sections import FilterSection, LearnerSection
from forethought.objectives import Group
from forethought.types import Document, ScoredRollout, Thought
from tests import tiny
from tests.scored import PROMPTING, TEMPERATURE, make_results
from trainer.batch.builder import BatchBuilder, TrainingBatch
from trainer.learner.batching import micro_batches
from trainer.learner.loss import batch_loss, policy_logprobs


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("model") / "model")
    return load_language_model(directory, "float32", "cpu")


@pytest.fixture(scope="module")
def results(language_model: LanguageModel) -> list[ScoredRollout]:
    """With at least one thought that closed itself and one that did not."""
    made = make_results(language_model)
    thoughts = [t for r in made for group in r.rollout.thoughts_KG for t in group]
    first = made[0].rollout.thoughts_KG[0][0]
    if not any(t.closed for t in thoughts):
        closed = replace(first, token_ids_L=(*first.token_ids_L[:-1], tiny.CLOSE_ID), closed=True)
        group = (closed, *made[0].rollout.thoughts_KG[0][1:])
        made[0] = replace(made[0], rollout=replace(made[0].rollout, thoughts_KG=(group,)))
    assert any(not t.closed for t in thoughts)
    return made


def build(
    results: Sequence[ScoredRollout], name: str, parameters: dict[str, Any], **learner: Any
) -> TrainingBatch:
    objective = objectives.load(name, parameters)
    builder = BatchBuilder(
        objective, estimators.load(objective.estimator), FilterSection(), LearnerSection(**learner)
    )
    return builder.build(results)


def gradient(language_model: LanguageModel) -> torch.Tensor:
    parameters = language_model.model.parameters()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def ours(language_model: LanguageModel, given: TrainingBatch, size: int = 64) -> torch.Tensor:
    model = language_model.model
    model.zero_grad(set_to_none=True)
    for batch in micro_batches(given.trees, size, torch.device("cpu"), forms_of(model)):
        parts = batch_loss(batch, policy_logprobs(model, batch), clip_low=0.2, clip_high=0.28)
        parts.loss.backward()
    return gradient(language_model)


def plain(language_model: LanguageModel, loss: torch.Tensor) -> torch.Tensor:
    language_model.model.zero_grad(set_to_none=True)
    loss.backward()
    return gradient(language_model)


def logprobs(
    language_model: LanguageModel, ids: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """log p of every token but the first, given those before it."""
    logits = language_model.model(torch.tensor([list(ids)])).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, dim=-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def groups(results: Iterable[ScoredRollout]) -> list[tuple[Any, ...]]:
    """(context with its bridge, target, thoughts, rewards) of every position."""
    return [
        (
            r.rollout.task.document.token_ids_N[: p.index] + PROMPTING.bridge_ids,
            p.target_ids_H,
            r.rollout.thoughts_KG[k],
            r.rewards_KG[k],
        )
        for r in results
        for k, p in enumerate(r.rollout.task.positions_K)
    ]


def closed_by(thought: Thought) -> tuple[int, ...]:
    """A sampled close token is already part of the thought."""
    return PROMPTING.close_ids[1:] if thought.closed else PROMPTING.close_ids


def answer_nll(
    language_model: LanguageModel, context: Any, target: Any, thought: Thought
) -> torch.Tensor:
    ids = context + thought.token_ids_L + closed_by(thought) + target
    return -logprobs(language_model, ids)[-len(target) :].sum()


def surrogate(language_model: LanguageModel, results: Iterable[ScoredRollout]) -> torch.Tensor:
    """RLP eq. 8 on fresh samples, where the ratio is 1 and nothing clips."""
    loss, given = torch.zeros(()), groups(results)
    for context, _, thoughts, rewards in given:
        for i, thought in enumerate(thoughts):
            others = rewards[:i] + rewards[i + 1 :]
            advantage = rewards[i] - sum(others) / len(others)
            log_p = logprobs(language_model, context + thought.token_ids_L, TEMPERATURE)
            of_thought = log_p[-len(thought.token_ids_L) :]
            ratio = (of_thought - torch.tensor(thought.behaviour_logprobs_L)).exp()
            loss = loss - ratio.mean() * advantage / (len(given) * len(thoughts))
    return loss


def test_the_pathwise_term_is_the_answers_nll(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> None:
    """RLP plus coef times the mean of -log p(target | thought), at temperature 1."""
    given = groups(results)
    answers = torch.stack(
        [answer_nll(language_model, c, x, t) for c, x, thoughts, _ in given for t in thoughts]
    )
    expected = plain(language_model, surrogate(language_model, results) + 0.3 * answers.mean())
    got = ours(language_model, build(results, "rlp", {"answer_nll_coef": 0.3}))
    without = ours(language_model, build(results, "rlp", {}))
    assert float((got - expected).abs().max()) < 1e-5
    assert float((got - without).abs().max()) > 1e-3


def test_the_pathwise_term_of_several_target_tokens_is_their_sum(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> None:
    result = results[0]
    (position,) = result.rollout.task.positions_K
    ids = result.rollout.task.document.token_ids_N
    wider = replace(position, target_ids_H=ids[position.index : position.index + 3])
    task = replace(result.rollout.task, positions_K=(wider,))
    given = [replace(result, rollout=replace(result.rollout, task=task))]
    coef = {"answer_nll_coef": 2.0}
    got = ours(language_model, build(given, "rlp", coef))
    ((context, target, thoughts, _),) = groups(given)
    answers = torch.stack([answer_nll(language_model, context, target, t) for t in thoughts])
    expected = plain(language_model, surrogate(language_model, given) + 2.0 * answers.mean())
    assert len(target) == 3
    assert float((got - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_rft_clones_the_best_thought_and_on_request_its_answer(
    language_model: LanguageModel, results: list[ScoredRollout], coef: float
) -> None:
    given = groups(results)
    loss = torch.zeros(())
    for context, target, thoughts, rewards in given:
        best = thoughts[max(range(len(rewards)), key=rewards.__getitem__)]
        log_p = logprobs(language_model, context + best.token_ids_L)[-len(best.token_ids_L) :]
        loss = loss - log_p.mean() / len(given)
        loss = loss + coef * answer_nll(language_model, context, target, best) / len(given)
    got = build(results, "rft", {"answer_nll_coef": coef})
    assert sum(len(tree.branches) for tree in got.trees) == len(given)  # one of three
    expected = plain(language_model, loss)
    assert float((ours(language_model, got) - expected).abs().max()) < 1e-5


def test_rft_chooses_the_first_of_equal_thoughts_and_on_request_only_good_ones() -> None:
    plain_rft = objectives.load("rft")
    only_good = objectives.load("rft", {"positive_only": True, "answer_nll_coef": 2.0})
    chosen = plain_rft.imitation((-2.0, -1.0, -1.0))
    assert chosen is not None
    assert (chosen.thought_weights_G, chosen.answer_weights_G) == ((0.0, 1.0, 0.0), (0.0,) * 3)
    assert only_good.imitation((-2.0, -1.0, -1.0)) is None
    assert only_good.imitation((-2.0, 0.0)) is None
    good = only_good.imitation((-2.0, 0.1))
    assert good is not None
    assert (good.thought_weights_G, good.answer_weights_G) == ((0.0, 1.0), (0.0, 2.0))


def test_rft_rewards_as_rlp_does() -> None:
    thought = Thought((7,), (-0.1,), (), closed=True)
    group = Group((42,), (thought,) * 2, (-0.5, -2.0), -1.0)
    assert objectives.load("rft").rewards(group) == objectives.load("rlp").rewards(group)


@pytest.mark.parametrize("thought_weight", [1.0, 0.0, 0.5])
def test_cot_cpt_is_next_token_loss_on_the_text_with_its_thoughts(
    language_model: LanguageModel, results: list[ScoredRollout], thought_weight: float
) -> None:
    total, weights = torch.zeros(()), 0.0
    for result in results:
        ids = result.rollout.task.document.token_ids_N
        for position, thoughts in zip(
            result.rollout.task.positions_K, result.rollout.thoughts_KG, strict=True
        ):
            for thought in thoughts:
                close = closed_by(thought)
                row = ids[: position.index] + PROMPTING.bridge_ids + thought.token_ids_L + close
                row_weights = (
                    [1.0] * position.index
                    + [0.0] * len(PROMPTING.bridge_ids)
                    + [thought_weight] * len(thought.token_ids_L)
                    + [0.0] * len(close)
                    + [1.0] * (len(ids) - position.index)
                )[1:]
                log_p = logprobs(language_model, row + ids[position.index :])
                total = total - (log_p * torch.tensor(row_weights)).sum()
                weights += sum(row_weights)
    got = build(results, "cot_cpt", {"thought_weight": thought_weight})
    expected = plain(language_model, total / weights)
    assert float((ours(language_model, got) - expected).abs().max()) < 1e-5


def test_next_token_loss_joins_the_step_with_its_coefficient(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> None:
    documents = [r.rollout.task.document.token_ids_N for r in results]
    log_p = torch.cat([logprobs(language_model, ids) for ids in documents])
    expected = plain(language_model, surrogate(language_model, results) - 0.25 * log_p.mean())
    got = ours(language_model, build(results, "rlp", {}, next_token_coef=0.25))
    assert float((got - expected).abs().max()) < 1e-5


def test_mixed_losses_are_masked_by_the_documents_own_weights(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> None:
    """The prompt of an SFT document has no weight, in the mixture too."""
    result = results[0]
    ids = result.rollout.task.document.token_ids_N
    document = Document("d", "s", ids, nll_weights_N=(0.0,) * 6 + (1.0,) * (len(ids) - 6))
    task = replace(result.rollout.task, document=document)
    given = [replace(result, rollout=replace(result.rollout, task=task))]
    log_p = logprobs(language_model, ids)[5:]
    expected = plain(language_model, surrogate(language_model, given) - log_p.mean())
    got = ours(language_model, build(given, "rlp", {}, next_token_coef=1.0))
    assert float((got - expected).abs().max()) < 1e-5


def test_masked_thoughts_are_neither_cloned_nor_answered(results: list[ScoredRollout]) -> None:
    objective = objectives.load("rft", {"answer_nll_coef": 1.0})
    builder = BatchBuilder(objective, estimators.load("none"), FilterSection(truncated="mask"))
    num_groups = sum(any(t.closed for t in thoughts) for *_, thoughts, _ in groups(results))
    branches = [b for tree in builder.build(results).trees for b in tree.branches]
    assert len(branches) == num_groups
    assert all(tiny.CLOSE_ID in branch.token_ids_T for branch in branches)


def test_a_reinforced_and_cloned_thought_has_a_row_for_each(results: list[ScoredRollout]) -> None:
    """Their temperatures differ, so one row cannot hold both."""

    class Both(type(objectives.load("rft"))):  # type: ignore[misc]
        mode = objectives.Mode.REINFORCE

    builder = BatchBuilder(Both(objectives.load("rft").config), estimators.load("leave_one_out"))
    branches = [b for tree in builder.build(results).trees for b in tree.branches]
    cloned = [b for b in branches if any(b.nll_weights_T)]
    reinforced = [b for b in branches if any(b.weights_T)]
    assert (len(cloned), len(reinforced)) == (len(groups(results)), 3 * len(groups(results)))
    assert not any(any(b.weights_T) for b in cloned)
