"""The learner against a plain per-thought loop that shares no code with it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as safetensors
import torch

from forethought import estimators, objectives
from forethought.compute.forms import Forms, forms_of
from forethought.compute.model import LanguageModel, load_language_model
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.types import Document, Rollout, ScoredRollout
from tests import architectures, tiny
from tests.scored import PROMPTING, TEMPERATURE, make_results, off_policy
from trainer.batch.builder import BatchBuilder
from trainer.batch.thought_tree import ThoughtTree, trees_of_documents
from trainer.learner.batching import MicroBatch, micro_batches
from trainer.learner.learner import Learner
from trainer.learner.loss import LossParts, batch_loss, policy_logprobs

SECTION = LearnerSection(micro_batch_tokens=64, learning_rate=1e-3, clip_low=0.1, clip_high=0.3)


@pytest.fixture(params=["llama", "gpt2"])
def language_model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    directory = tiny.build_model_directory(tmp_path / "model", request.param)
    return load_language_model(directory, "float32", "cpu")


def trees(results: list[ScoredRollout]) -> list[ThoughtTree]:
    builder = BatchBuilder(objectives.load("rlp"), estimators.load("leave_one_out"))
    return builder.build(results).trees


def batches_of(model: Any, given: list[ThoughtTree], max_tokens: int) -> list[MicroBatch]:
    """As the learner makes them for this model."""
    return micro_batches(given, max_tokens, torch.device("cpu"), forms_of(model))


def num_row_tokens(given: list[ThoughtTree]) -> int:
    """The inputs of all rows: what they share counts in each."""
    return sum(b.index + len(b.token_ids_T) - 1 for tree in given for b in tree.branches)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learner_gradients(
    language_model: LanguageModel, given: list[ThoughtTree]
) -> dict[str, torch.Tensor]:
    model = language_model.model
    model.zero_grad(set_to_none=True)
    for batch in batches_of(model, given, SECTION.micro_batch_tokens):
        parts = batch_loss(batch, policy_logprobs(model, batch), clip_low=0.1, clip_high=0.3)
        parts.loss.backward()
    return gradients(model)


def naive_gradients(
    language_model: LanguageModel, results: list[ScoredRollout]
) -> dict[str, torch.Tensor]:
    """RLP eq. 7 and 8 written out: one forward pass per thought, one sum per token."""
    model = language_model.model
    model.zero_grad(set_to_none=True)
    groups = [
        (r.rollout.task, k, r.rollout.thoughts_KG[k], r.rewards_KG[k])
        for r in results
        for k in range(len(r.rewards_KG))
    ]
    loss = torch.zeros(())
    for task, k, thoughts, rewards in groups:
        mean = sum(rewards) / len(rewards)
        context = task.document.token_ids_N[: task.positions_K[k].index] + PROMPTING.bridge_ids
        for thought, reward in zip(thoughts, rewards, strict=True):
            advantage = len(rewards) / (len(rewards) - 1) * (reward - mean)
            logits = model(torch.tensor([context + thought.token_ids_L])).logits[0]
            logprobs = torch.log_softmax(logits.float() / TEMPERATURE, dim=-1)
            total = torch.zeros(())
            for u, token in enumerate(thought.token_ids_L):
                ratio = (
                    logprobs[len(context) + u - 1, token] - thought.behaviour_logprobs_L[u]
                ).exp()
                clipped = ratio.clamp(1 - 0.1, 1 + 0.3)
                total = total + torch.minimum(ratio * advantage, clipped * advantage)
            loss = loss - total / len(thought.token_ids_L) / (len(groups) * len(rewards))
    loss.backward()
    return gradients(model)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("on_policy", [True, False])
def test_surrogate_gradient_equals_the_naive_loop(
    language_model: LanguageModel, on_policy: bool
) -> None:
    results = make_results(language_model)
    results = results if on_policy else off_policy(results)
    ours = learner_gradients(language_model, trees(results))
    naive = naive_gradients(language_model, results)
    assert max(float(g.abs().max()) for g in naive.values()) > 1e-2
    assert largest_difference(ours, naive) < 1e-5


def test_a_constant_added_to_rewards_changes_no_gradient(language_model: LanguageModel) -> None:
    plain = learner_gradients(language_model, trees(make_results(language_model)))
    shifted = learner_gradients(language_model, trees(make_results(language_model, shift=3.0)))
    assert largest_difference(plain, shifted) < 1e-6


def test_ratio_is_one_on_fresh_thoughts(language_model: LanguageModel) -> None:
    given = trees(make_results(language_model))
    model = language_model.model
    for batch in batches_of(model, given, 64):
        parts = batch_loss(batch, policy_logprobs(model, batch), clip_low=0.1, clip_high=0.3)
        assert parts.num_clipped == 0
        assert parts.ratio_max == pytest.approx(1.0, abs=1e-5)


def test_no_gradient_off_the_thought_tokens(language_model: LanguageModel) -> None:
    """The gradient of the loss with respect to every logit: only predictions of thought tokens."""
    results = make_results(language_model)
    for tree in trees(results):
        for branch in tree.branches:
            single = replace(tree, branches=(branch,))
            (batch,) = batches_of(language_model.model, [single], 10_000)
            logprobs = policy_logprobs(language_model.model, batch).detach().requires_grad_()
            batch_loss(batch, logprobs, clip_low=0.1, clip_high=0.3).loss.backward()
            assert logprobs.grad is not None
            sampled = branch.token_ids_T[len(PROMPTING.bridge_ids) :]
            # Nothing but the sampled tokens is even scored.
            assert batch.targets.ids_M.tolist() == list(sampled)
            assert logprobs.shape == (len(sampled),)


def test_padding_and_micro_batches_change_nothing(language_model: LanguageModel) -> None:
    given = trees(off_policy(make_results(language_model)))
    together = learner_gradients(language_model, given)
    model = language_model.model
    model.zero_grad(set_to_none=True)
    for tree in given:
        for batch in micro_batches([tree], 1, torch.device("cpu"), Forms("alone")):
            batch_loss(
                batch, policy_logprobs(model, batch), clip_low=0.1, clip_high=0.3
            ).loss.backward()
    assert largest_difference(together, gradients(model)) < 1e-6


def test_importance_correction_is_truncated(language_model: LanguageModel) -> None:
    given = trees(off_policy(make_results(language_model)))
    (batch,) = batches_of(language_model.model, given, 10_000)
    logprobs = policy_logprobs(language_model.model, batch).detach()
    cap = 1.05
    got = batch_loss(
        batch, logprobs, clip_low=0.1, clip_high=0.3, proximal_logprobs_M=logprobs,
        importance_cap=cap,
    ).surrogate  # fmt: skip
    expected = 0.0
    for m, logprob in enumerate(logprobs.tolist()):
        factor = math.exp(logprob - float(batch.behaviour_logprobs_M[m]))
        expected -= float(batch.weights_M[m] * batch.advantages_M[m]) * min(factor, cap)
    assert got == pytest.approx(expected, abs=1e-6)


def test_next_token_loss_equals_cross_entropy(language_model: LanguageModel) -> None:
    documents = [
        Document("a", "s", (5, 60, 7, 80, 9)),
        Document("b", "s", (30, 31, 32), nll_weights_N=(1.0, 0.0, 1.0)),
    ]
    model = language_model.model
    batches = batches_of(model, trees_of_documents(documents), 64)
    total = sum(
        batch_loss(b, policy_logprobs(model, b), clip_low=0.1, clip_high=0.3).nll for b in batches
    )
    naive = []
    for document in documents:
        ids = document.token_ids_N
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].detach(), dim=-1)
        weights = document.nll_weights_N or (1.0,) * len(ids)
        naive += [-float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)) if weights[i] == 1.0]
    assert total == pytest.approx(sum(naive) / len(naive), abs=1e-5)


def test_failed_results_leave_the_batch_smaller(language_model: LanguageModel) -> None:
    results = make_results(language_model)
    failed = replace(results[0], rollout=Rollout(results[0].rollout.task, error="no"), error=None)
    without = learner_gradients(language_model, trees(results[1:]))
    with_failed = learner_gradients(language_model, trees([failed, *results[1:]]))
    assert largest_difference(without, with_failed) == 0.0


def test_the_version_advances_even_when_nothing_is_learned(language_model: LanguageModel) -> None:
    learner = Learner(language_model, SECTION, BaselineSection())
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    assert learner.step([]).skipped
    bad = make_results(language_model)
    bad = [replace(r, rewards_KG=tuple((math.nan,) * 3 for _ in r.rewards_KG)) for r in bad]
    assert learner.step(trees(bad)).skipped
    assert learner.version == 2
    assert learner.num_optimizer_steps == 0
    for name, parameter in learner.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_later_passes_correct_by_the_log_probs_of_the_first(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those at the batch's start, because no weight has changed yet, and need no other pass."""
    section = LearnerSection(micro_batch_tokens=64, learning_rate=1e-2, importance_cap=2.0)
    learner = Learner(language_model, section, BaselineSection(kind="none"))
    computed: list[torch.Tensor] = []
    old: list[torch.Tensor] = []

    def recorded(batch: MicroBatch, logprobs_M: torch.Tensor, **given: Any) -> LossParts:
        computed.append(logprobs_M.detach())
        old.append(given["proximal_logprobs_M"])
        return batch_loss(batch, logprobs_M, **given)

    monkeypatch.setattr("trainer.learner.learner.batch_loss", recorded)
    learner.step(trees(make_results(language_model)), num_passes=2)
    num = len(computed) // 2
    assert num > 1
    for first, second, before, later in zip(computed, computed[num:], old, old[num:], strict=False):
        assert torch.equal(before, first)
        assert torch.equal(later, first)
        assert not torch.equal(second, first)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_every_optimizer_pass_counts_its_tokens(language_model: LanguageModel, cap: float) -> None:
    section = LearnerSection(micro_batch_tokens=64, learning_rate=1e-3, importance_cap=cap)
    learner = Learner(language_model, section, BaselineSection(kind="none"))
    given = trees(make_results(language_model))
    once, thrice = learner.step(given), learner.step(given, num_passes=3)
    assert thrice.num_tokens == 3 * once.num_tokens == 3 * num_row_tokens(given)
    assert (thrice.num_skipped_passes, thrice.skipped, learner.version) == (0, False, 2)


def test_a_skipped_second_pass_is_seen_and_does_not_hide_the_first(
    language_model: LanguageModel,
) -> None:
    """A first update of 1e30 makes every later loss NaN: the weights moved, and two passes did nothing."""
    section = LearnerSection(micro_batch_tokens=64, learning_rate=1e30)
    learner = Learner(language_model, section, BaselineSection(kind="none"))
    given = trees(make_results(language_model))
    tokens = num_row_tokens(given)
    result = learner.step(given, num_passes=3)
    assert (result.skipped, result.num_skipped_passes) == (False, 2)
    assert (learner.num_optimizer_steps, learner.version) == (1, 1)
    assert math.isfinite(result.loss)
    assert math.isfinite(result.grad_norm)
    assert result.num_tokens == 3 * tokens
    again = learner.step(given, num_passes=2)
    assert (again.skipped, again.num_skipped_passes) == (True, 2)


def test_the_reward_of_a_good_thought_rises(language_model: LanguageModel) -> None:
    """A step in the direction of the gradient makes rewarded thoughts likelier."""
    learner = Learner(language_model, SECTION, BaselineSection(kind="none"))
    results = make_results(language_model)
    given = trees(results)

    def objective_value() -> float:
        batches = batches_of(learner.model, given, 64)
        with torch.no_grad():
            return sum(
                float((b.weights_M * b.advantages_M * policy_logprobs(learner.model, b)).sum())
                for b in batches
            )

    before = objective_value()
    learner.step(given)
    assert objective_value() > before


@pytest.mark.parametrize("kind", ["ema", "frozen", "none"])
def test_baseline_follows_its_definition(language_model: LanguageModel, kind: Any) -> None:
    learner = Learner(language_model, SECTION, BaselineSection(kind=kind, decay=0.9))
    name = next(iter(dict(learner.model.named_parameters())))
    initial = dict(learner.model.named_parameters())[name].detach().clone()
    expected = initial.clone()
    for _ in range(3):
        learner.step(trees(make_results(language_model)))
        expected = 0.9 * expected + 0.1 * dict(learner.model.named_parameters())[name].detach()
    if kind == "none":
        assert not learner.baseline.exists
    else:
        target = expected if kind == "ema" else initial
        assert torch.allclose(learner.baseline.tensors[name], target, atol=1e-6)


def test_bfloat16_compute_keeps_float32_masters(tmp_path: Path) -> None:
    directory = tiny.build_model_directory(tmp_path / "model")
    learner = Learner(
        load_language_model(directory, "bfloat16", "cpu"),
        LearnerSection(learning_rate=1e-6, micro_batch_tokens=64),
        BaselineSection(),
    )
    documents = [Document("a", "s", (5, 60, 7, 80, 9))]
    masters = {n: t.clone() for n, t in learner.state().items() if n.startswith("master/")}
    for _ in range(3):
        learner.step(trees_of_documents(documents))
    moved = [n for n, t in masters.items() if not torch.equal(t, learner.state()[n])]
    assert moved, "an update smaller than a bfloat16 rounding step was lost"
    for name, parameter in learner.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, learner.state()[f"master/{name}"].bfloat16())


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral"])
def test_both_models_are_published_as_save_pretrained_writes_them(
    name: str, tmp_path: Path
) -> None:
    """transformers holds them under other names, and experts in one tensor; a replica takes them so."""
    base, saved = (tmp_path / folder for folder in ("base", "saved"))
    served = tiny.serve(architectures.build_directory(base, name), "policy")
    learner = Learner(
        load_language_model(base, "float32", "cpu"), SECTION, BaselineSection(kind="frozen")
    )
    before = safetensors.load((base / "model.safetensors").read_bytes())
    assert not learner.step(trees_of_documents([Document("a", "s", tuple(range(5, 60)))])).skipped
    learner.model.save_pretrained(saved)
    policy = safetensors.load((saved / "model.safetensors").read_bytes())
    for payload, expected in [
        (learner.policy_payload(), policy),
        (learner.baseline_payload(), before),
    ]:
        found = safetensors.load(payload)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
    (saved / "model.safetensors").write_bytes(learner.policy_payload())
    served.load(saved, tiny.manifest("policy", version=1))
    now = dict(served.now.language_model.model.named_parameters())
    assert all(torch.equal(now[key], one) for key, one in learner.model.named_parameters())


@pytest.mark.parametrize("name", ["bamba", "nemotron_h", "rwkv", "phi3"])
def test_a_step_learns_what_rows_alone_say(name: str, tmp_path: Path) -> None:
    """Beside a long row: padding that leaks, rotary frequencies that change, states in chunks of 8."""
    directory = architectures.build_directory(tmp_path, name)
    language_model = load_language_model(directory, "float32", "cpu")
    documents = [Document("a", "s", tuple(range(5, 5 + n))) for n in (6, 7, 60)]
    given = trees_of_documents(documents)
    model = language_model.model
    alone = [micro_batches([t], 1, torch.device("cpu"), Forms("alone")) for t in given]
    expected = sum(
        batch_loss(b, policy_logprobs(model, b), clip_low=0.1, clip_high=0.3).nll for (b,) in alone
    )
    section = SECTION.model_copy(update={"micro_batch_tokens": 10_000})
    result = Learner(language_model, section, BaselineSection(kind="none")).step(given)
    assert result.nll == pytest.approx(expected, abs=1e-4)
    assert result.grad_norm > 0
    assert not result.skipped
