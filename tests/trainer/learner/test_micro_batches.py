"""Steps over packed trees, however cut, against the same step over rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forethought.compute import token_logprobs
from forethought.compute.forms import Forms, forms_of, note_forms
from forethought.compute.model import LanguageModel
from forethought.config.sections import BaselineSection, LearnerSection
from tests import architectures, tiny
from tests.trainer.learner.test_memory import peak_bytes
from tests.trainer.learner.test_shared_context import TREES, gradients
from trainer.learner.batching import micro_batches
from trainer.learner.learner import Learner, StepResult
from trainer.learner.loss import SURROGATES

TOLERANCE = 1e-5
CPU = torch.device("cpu")
NUM_BRANCHES = sum(len(tree.branches) for tree in TREES)
NUM_TRUNKS = sum(any(tree.nll_weights_N) for tree in TREES)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral"])
def language_model(request: pytest.FixtureRequest) -> LanguageModel:
    """Rotary and absolute positions, and a window shorter than the documents."""
    return architectures.prepared(request.param)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of more than 16 tokens are recomputed, 5 tokens at a time."""
    vocabulary = tiny.VOCAB_SIZE
    monkeypatch.setattr(token_logprobs, "KEPT_LOGITS", 16 * vocabulary)
    monkeypatch.setattr(token_logprobs, "_CHUNK_LOGITS", 5 * vocabulary)


def step(
    language_model: LanguageModel, forms: Forms, max_tokens: int, **given: Any
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """The result and the gradients of a step that does not move the weights."""
    model = language_model.model
    before = forms_of(model)
    note_forms(model, forms)
    section = LearnerSection(
        micro_batch_tokens=max_tokens, learning_rate=1e-30, grad_clip_norm=0.0, **given
    )
    result = Learner(language_model, section, BaselineSection(kind="none")).step(TREES)
    note_forms(model, before)
    return result, gradients(model)


def largest_relative_difference(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> float:
    assert found.keys() == expected.keys()
    norm = float(torch.nn.utils.get_total_norm(expected.values()))
    scales = {name: max(float(g.norm()), 0.01 * norm) for name, g in expected.items()}
    return max(float((found[name] - expected[name]).norm()) / scales[name] for name in expected)


@pytest.mark.parametrize("cap", [0.0, 1.2])
@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_every_surrogate_has_the_gradients_of_rows_alone(
    language_model: LanguageModel, surrogate: str, cap: float
) -> None:
    """GSPO's ratio is of a row, wherever its tokens lie; the importance correction is of each token."""
    given = {"loss": surrogate, "importance_cap": cap}
    alone, expected = step(language_model, Forms("alone"), 1, **given)
    packed, found = step(language_model, Forms("trees"), 10_000, **given)
    assert largest_relative_difference(found, expected) < TOLERANCE
    assert packed.loss == pytest.approx(alone.loss, rel=1e-4)
    assert packed.ratio_max == pytest.approx(alone.ratio_max, rel=1e-4)
    assert packed.clipped_share == alone.clipped_share
    assert packed.effective_sample_share == pytest.approx(alone.effective_sample_share, rel=1e-4)
    assert packed.num_tokens == alone.num_tokens


@pytest.mark.parametrize("max_tokens", [1, 41, 80])
def test_a_budget_below_a_tree_cuts_it_and_changes_no_gradient(
    language_model: LanguageModel, max_tokens: int
) -> None:
    whole, expected = step(language_model, Forms("trees"), 10_000, loss="gspo")
    cut, found = step(language_model, Forms("trees"), max_tokens, loss="gspo")
    batches = micro_batches(TREES, max_tokens, CPU, Forms("trees"))
    assert len(batches) > 1
    assert all(b.pack.num_tokens <= max_tokens or len(b.pack.rows) == 1 for b in batches)
    assert sum(len(b.pack.rows) for b in batches) == NUM_BRANCHES + NUM_TRUNKS
    assert largest_relative_difference(found, expected) < TOLERANCE
    assert cut.num_tokens == whole.num_tokens


@pytest.mark.usefixtures("small_chunks")
def test_logits_in_chunks_change_no_gradient(language_model: LanguageModel) -> None:
    given = {"loss": "ppo_clip", "importance_cap": 1.2}
    _, expected = step(language_model, Forms("alone"), 1, **given)  # most rows are of one chunk
    _, found = step(language_model, Forms("trees"), 10_000, **given)
    assert largest_relative_difference(found, expected) < TOLERANCE


def test_logits_in_chunks_take_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = architectures.prepared("llama").model
    (batch,) = micro_batches(TREES, 10_000, CPU, Forms("trees"))
    whole = peak_bytes(model, batch)
    vocabulary = tiny.VOCAB_SIZE
    monkeypatch.setattr(token_logprobs, "KEPT_LOGITS", 16 * vocabulary)
    monkeypatch.setattr(token_logprobs, "_CHUNK_LOGITS", 16 * vocabulary)
    logit_bytes = 4 * vocabulary * len(batch.targets.ids_M)
    assert peak_bytes(model, batch) < whole - logit_bytes


def test_what_rows_share_is_computed_once() -> None:
    (packed,) = micro_batches(TREES, 10_000, CPU, Forms("trees"))
    alone = micro_batches(TREES, 1, CPU, Forms("alone"))
    num_separate = sum(batch.pack.num_tokens for batch in alone)
    assert packed.num_row_tokens == num_separate
    assert packed.pack.num_tokens == packed.pack.input_ids.numel() < num_separate / 2
