"""The train step: interleaved next-token steps, and the no-think measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from forethought import estimators, objectives
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config import load_settings
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.errors import InvalidInput
from forethought.preflight import check_run
from forethought.types import Document, ScoredRollout
from tests import tiny
from tests.scored import PROMPTING, make_results
from trainer.batch.builder import BatchBuilder
from trainer.learner.learner import Learner
from trainer.metrics.no_think import no_think_metrics
from trainer.train_step import TrainStep


class Shelf:
    """Numbered documents; remembers how many were taken."""

    def __init__(self) -> None:
        self.num_taken = 0

    def take(self, num_documents: int) -> list[Document]:
        first = self.num_taken
        self.num_taken += num_documents
        return [
            Document(f"s{n}", "shelf", tuple(30 + (7 * n + 5 * i) % 60 for i in range(8)))
            for n in range(first, self.num_taken)
        ]


@pytest.fixture
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("model") / "model")
    return load_language_model(directory, "float32", "cpu")


def train_step_of(language_model: LanguageModel, **learner: Any) -> TrainStep:
    section = LearnerSection(**{"learning_rate": 1e-3, "batch_tasks": 3, **learner})
    builder = BatchBuilder(
        objectives.load("rlp"), estimators.load("leave_one_out"), learner=section
    )
    return TrainStep(
        Learner(language_model, section, BaselineSection(kind="none")), builder, Shelf(), section
    )


def test_by_default_a_batch_is_one_version_and_reads_no_document(
    language_model: LanguageModel,
) -> None:
    train_step = train_step_of(language_model)
    results = make_results(language_model)
    versions = [train_step.run(results, step).version for step in (1, 2, 3)]
    assert versions == [0, 1, 2]
    assert train_step.learner.version == 3
    assert train_step.documents.num_taken == 0  # type: ignore[attr-defined]


def test_every_nth_step_is_followed_by_a_next_token_step(language_model: LanguageModel) -> None:
    """It advances the version and takes the corpus's next documents; batches are unaffected."""
    train_step = train_step_of(language_model, next_token_every_steps=2, no_think_every_steps=0)
    results = make_results(language_model)
    report = [train_step.run(results, step) for step in (1, 2, 3, 4, 5)]
    assert [s.version for s in report] == [0, 1, 3, 4, 6]
    assert train_step.learner.version == 7
    assert train_step.learner.num_optimizer_steps == 7
    assert ["next_token_nll" in s.metrics for s in report] == [False, True, False, True, False]
    assert train_step.documents.num_taken == 6  # type: ignore[attr-defined]
    extra = report[1].result.num_tokens - report[0].result.num_tokens
    assert extra == 3 * 7  # of three documents, all but their last token is read


def test_an_interleaved_step_is_a_plain_next_token_step(language_model: LanguageModel) -> None:
    """Also with several optimizer passes: those are for thoughts."""
    train_step = train_step_of(language_model, next_token_every_steps=1, inner_epochs=2)
    nothing: list[ScoredRollout] = []
    expected = 0.0
    with torch.no_grad():
        ids = [d.token_ids_N for d in Shelf().take(3)]
        for row in ids:
            logits = language_model.model(torch.tensor([row])).logits[0, :-1].float()
            log_p = torch.log_softmax(logits, dim=-1)[torch.arange(7), torch.tensor(row[1:])]
            expected -= float(log_p.sum()) / 21
    report = train_step.run(nothing, 1)
    assert report.metrics["next_token_nll"] == pytest.approx(expected, abs=1e-5)
    assert train_step.learner.num_optimizer_steps == 1
    assert train_step.learner.version == 2
    assert report.result.skipped


def test_a_skipped_next_token_step_is_seen(language_model: LanguageModel) -> None:
    """The thoughts' own update of 1e30 makes the loss of the step after it NaN."""
    train_step = train_step_of(language_model, next_token_every_steps=1, learning_rate=1e30)
    report = train_step.run(make_results(language_model), 1)
    assert (report.result.skipped, report.metrics["skipped_passes"]) == (False, 1)


def test_mixed_losses_report_both(language_model: LanguageModel) -> None:
    train_step = train_step_of(language_model, next_token_coef=0.5)
    report = train_step.run(make_results(language_model), 1)
    assert report.metrics["nll"] == report.result.nll > 0
    assert train_step.learner.version == 1


@pytest.mark.parametrize("words", ["next_token_every_steps=2", "next_token_coef=0.1"])
def test_an_objective_without_thoughts_has_nothing_to_alternate_with(words: str) -> None:
    with pytest.raises(InvalidInput, match="every step is a next-token step"):
        check_run(load_settings(None, ["objective.name=ntp", f"learner.{words}"], {}))


def no_think_logprobs(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> list[tuple[float, ...]]:
    """By hand: log p(target | context) with the think-open token's mass removed."""
    found = []
    for result in results:
        task = result.rollout.task
        values = []
        for position in task.positions_K:
            head = task.prompting.no_think_head_ids
            ids = head + task.document.token_ids_N[: position.index]
            with torch.no_grad():
                p = language_model.model(torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
            (target,) = position.target_ids_H
            values.append(float((p[target] / (1 - p[tiny.OPEN_ID])).log()))
        found.append(tuple(values))
    return found


def with_baselines(results: list[ScoredRollout], shift: float, values: Any) -> list[ScoredRollout]:
    return [
        replace(r, baseline_logprobs_K=tuple(v + shift for v in of_r))
        for r, of_r in zip(results, values, strict=True)
    ]


def test_the_no_think_nll_and_its_drift_by_hand(language_model: LanguageModel) -> None:
    results = make_results(language_model)
    head = replace(PROMPTING, no_think_head_ids=(40, 41))
    task = replace(results[0].rollout.task, prompting=head)
    results[0] = replace(results[0], rollout=replace(results[0].rollout, task=task))
    values = no_think_logprobs(language_model, results)
    flat = [v for of_r in values for v in of_r]
    got = no_think_metrics(language_model, with_baselines(results, 0.25, values), 1000)
    assert got["no_think_nll"] == pytest.approx(-sum(flat) / len(flat), abs=1e-5)
    assert got["no_think_drift"] == pytest.approx(0.25, abs=1e-5)  # the baseline was better


def test_without_a_baseline_there_is_no_drift(language_model: LanguageModel) -> None:
    results = [
        replace(r, rollout=replace(r.rollout, task=replace(r.rollout.task, models=("policy",))))
        for r in make_results(language_model)
    ]
    assert no_think_metrics(language_model, results, 1000).keys() == {"no_think_nll"}
    failed = [replace(r, error="no") for r in results]
    assert no_think_metrics(language_model, failed, 1000) == {}


def test_the_measurement_is_taken_when_due(language_model: LanguageModel) -> None:
    train_step = train_step_of(language_model, no_think_every_steps=3)
    results = make_results(language_model)
    taken = ["no_think_nll" in train_step.run(results, step).metrics for step in range(1, 7)]
    assert taken == [False, False, True, False, False, True]
