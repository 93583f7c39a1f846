"""A prompting with a BOS: rows are those that were sampled and scored, and text follows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.forms import Forms
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config.sections import LearnerSection
from forethought.types import Document, ScoredRollout
from tests import tiny
from tests.scored import PROMPTING, make_results
from trainer.batch.builder import BatchBuilder
from trainer.batch.thought_tree import ThoughtTree, trees_of_documents
from trainer.learner.batching import MicroBatch, micro_batches
from trainer.learner.loss import batch_loss, policy_logprobs

BOS = (tiny.BOS_ID,)
BEGUN = replace(PROMPTING, head_ids=(70, 71), bos_ids=BOS)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("model") / "model")
    return load_language_model(tiny.begin_with_bos(directory), "float32", "cpu")


@pytest.fixture(scope="module")
def results(language_model: LanguageModel) -> list[ScoredRollout]:
    return make_results(language_model, prompting=BEGUN)


def trees(name: str, results: list[ScoredRollout], **learner: Any) -> list[ThoughtTree]:
    objective = objectives.load(name)
    builder = BatchBuilder(
        objective, estimators.load(objective.estimator), learner=LearnerSection(**learner)
    )
    return builder.build(results).trees


def batch_of(given: list[ThoughtTree]) -> MicroBatch:
    (batch,) = micro_batches(given, 100_000, torch.device("cpu"), Forms("trees"))
    return batch


def rows_of(given: list[ThoughtTree]) -> set[tuple[int, ...]]:
    """All but the last token of every row, each computed in a pass of its own."""
    alone = micro_batches(given, 1, torch.device("cpu"), Forms("alone"))
    return {tuple(batch.pack.input_ids[0].tolist()) for batch in alone}


def test_thoughts_are_trained_after_the_prefix_they_were_sampled_from(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> None:
    given = trees("rlp", results)
    sampled = {
        (result.rollout.task.prompting.thinking_prefix(
            result.rollout.task.document.token_ids_N[: position.index]
        ) + thought.token_ids_L)[:-1]
        for result in results
        for position, thoughts_G in zip(
            result.rollout.task.positions_K, result.rollout.thoughts_KG, strict=True
        )
        for thought in thoughts_G
    }  # fmt: skip
    assert rows_of(given) == sampled
    assert all(row[:3] == (tiny.BOS_ID, 70, 71) for row in sampled)
    batch = batch_of(given)
    logprobs_M = policy_logprobs(language_model.model, batch).detach()
    difference = (logprobs_M - batch.behaviour_logprobs_M).abs()
    assert float(difference[batch.weights_M != 0].max()) < 1e-4


@pytest.mark.parametrize("name", ["rft", "cot_cpt", "rlp"])
def test_every_row_begins_with_one_bos_and_none_predicts_it(
    name: str, results: list[ScoredRollout]
) -> None:
    given = trees(name, results, next_token_coef=0.5)
    rows = rows_of(given)
    assert {row[:1] for row in rows} == {BOS}
    assert not any(tiny.BOS_ID in row[1:] for row in rows)
    batch = batch_of(given)
    learned = (batch.weights_M != 0) | (batch.nll_weights_M != 0)
    assert tiny.BOS_ID not in batch.targets.ids_M[learned].tolist()
    trunks = {result.rollout.task.document.token_ids_N for result in results}
    assert {BOS + trunk[:-1] for trunk in trunks} <= rows


def test_next_token_loss_behind_a_bos_covers_the_first_token(language_model: LanguageModel) -> None:
    documents = [
        Document("a", "s", (5, 60, 7, 80, 9)),
        Document("b", "s", (30, 31, 32), nll_weights_N=(0.0, 1.0, 1.0)),
    ]
    batch = batch_of(trees_of_documents(documents, BOS))
    got = batch_loss(
        batch, policy_logprobs(language_model.model, batch), clip_low=0.1, clip_high=0.3
    ).nll
    losses = []
    for document in documents:
        ids = torch.tensor([BOS + document.token_ids_N])
        logprobs = language_model.model(ids).logits[0].detach().log_softmax(-1)
        weights = document.nll_weights_N or (1.0,) * len(document.token_ids_N)
        losses += [
            -float(logprobs[i, token_id])
            for i, (token_id, weight) in enumerate(zip(document.token_ids_N, weights, strict=True))
            if weight
        ]
    assert len(losses) == 7
    assert got == pytest.approx(sum(losses) / 7, abs=1e-5)
