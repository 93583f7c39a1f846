"""The log of a run's steps, and the optimizer that takes them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.config.sections import LearnerSection
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
from trainer.learner.optimizer import MasterOptimizer, schedule_factor
from trainer.metrics.step_log import MetricsLog, rollout_metrics


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_are_strict_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl", num_steps_done=0)
    log.write(1, {"loss": math.nan, "up": math.inf, "down": -math.inf, "fine": 0.5, "n": 3})
    (line,) = read(tmp_path / "run" / "metrics.jsonl")  # flushed, before it is closed
    log.close()
    assert [line[key] for key in ("step", "loss", "up", "down", "fine", "n")] == [
        1, None, None, None, 0.5, 3,
    ]  # fmt: skip
    assert line["time_unix_s"] > 1.7e9


def test_a_resumed_run_drops_lines_past_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, num_steps_done=0)
    for step in range(1, 6):
        log.write(step, {"loss": 0.1 * step})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 2, "half')  # killed while it wrote
    log = MetricsLog(path, num_steps_done=3)
    log.write(4, {"loss": 9.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in read(path)] == [
        (1, 0.1), (2, 0.2), (3, pytest.approx(0.3)), (4, 9.0),
    ]  # fmt: skip


def test_a_fresh_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path, num_steps_done=0).close()
    assert path.read_text() == ""


def result(
    source: str,
    rewards_KG: tuple[tuple[float, ...], ...],
    thoughts_KG: tuple[tuple[Thought, ...], ...],
    error: str | None = None,
) -> ScoredRollout:
    """``information gain`` is twice the reward: policy log-prob 2r - 1 over a baseline of -1."""
    task = Task(
        0, 1, 0, 0, "rlp", "{}", Document("d", source, (1, 2, 3)),
        tuple(Position(1 + k, (2 + k,)) for k in range(len(rewards_KG))),
        Prompting(head_ids=(7,), bridge_ids=(8,), close_ids=(9,)), Sampling(2, 9), 0,
    )  # fmt: skip
    policy_KG = tuple(tuple(2 * r - 1 for r in rewards_G) for rewards_G in rewards_KG)
    return ScoredRollout(
        Rollout(task, thoughts_KG), rewards_KG, policy_KG, (-1.0,) * len(rewards_KG), error=error
    )


def thought(num_tokens: int, closed: bool = True, *versions: int) -> Thought:
    spans = tuple(VersionSpan(version, num_tokens // len(versions)) for version in versions)
    return Thought((0,) * num_tokens, (-0.5,) * num_tokens, spans, closed)


def test_rollout_metrics_by_hand() -> None:
    results = [
        result(
            "books",
            ((1.0, 3.0), (-1.0, 0.0)),
            (
                (thought(2, True, 5), thought(4, False, 5)),
                (thought(6, True, 3, 5), thought(4, True, 4)),
            ),
        ),
        result("news", ((0.5, 0.0),), ((thought(1, True, 5), thought(1, False, 5)),)),
        result("news", ((9.0, 9.0),), ((thought(9, True, 1), thought(9, True, 1)),), error="bad"),
    ]
    values = rollout_metrics(results, version=5)
    assert values.pop("num_groups") == 3
    assert values == pytest.approx(
        {
            "reward_mean": 3.5 / 6,
            "reward_group_spread": (2.0 + 1.0 + 0.5) / 3,
            "reward_group_std": (1.0 + 0.5 + 0.25) / 3,  # half the spread, with two thoughts
            "zero_variance_share": 0.0,
            "information_gain": 7.0 / 6,
            "think_nll": -(2 * 3.5 - 6) / 6,  # policy log-prob 2r - 1
            # head, one or two of the document, bridge, thought; then close and target, and no-think rows
            # of the failed result too: two rows of three and nine tokens were sampled and scored
            "sampled_tokens": 6 * 2 + (2 + 2 * 2 + 2) + 18 + 2 * (3 + 9),
            "scored_tokens": 6 * 2 + (2 + 2 * 2 + 2) + 18 + 6 * 2 + (2 + 3 + 2) + 2 * (5 + 9) + 2,
            "thought_tokens_mean": 18 / 6,
            "thought_tokens_p95": 6,
            "sampled_entropy": 0.5,
            "truncated_share": 2 / 6,
            # 18 tokens; 3 of them two versions behind, 4 one version behind
            "lag_mean": (3 * 2 + 4 * 1) / 18,
            "source/books/reward_mean": 3.0 / 4,
            "source/news/reward_mean": 0.25,
        }
    )


def test_a_batch_that_failed_in_scoring_was_sampled() -> None:
    """Thoughts without rewards cost what others do; a task that was not sampled costs nothing."""
    thoughts_KG = ((thought(2, True, 5), thought(4, True, 5)),)
    task = result("s", ((0.0,),), ()).rollout.task
    failed = ScoredRollout(Rollout(task, thoughts_KG), error="no")
    never = ScoredRollout(Rollout(task, error="no result in time"))
    values = rollout_metrics([failed, never], version=5)
    assert values == {"num_groups": 0, "sampled_tokens": 2 * 3 + 6, "scored_tokens": 0}


def test_predictions_whose_likelihood_was_needed_are_scored_tokens() -> None:
    """RPT's dense rewards: the scorer computes a row without a thought for every predicted token."""
    predicted = replace(thought(4, True, 5), num_prediction_tokens=1)
    thoughts_KG = ((predicted, thought(4, False, 5)), (predicted, predicted))
    given = result("s", ((1.0, 0.0), (0.0, 0.0)), thoughts_KG)
    task = replace(given.rollout.task, models=("prediction",), prompting=Prompting(bos_ids=(5,)))
    dense = replace(given, rollout=replace(given.rollout, task=task), policy_logprobs_KG=((), ()))
    assert rollout_metrics([dense], version=5)["scored_tokens"] == (1 + 1 + 1) + 2 * (1 + 2 + 1)
    as_published = replace(dense, rollout=replace(dense.rollout, task=replace(task, models=())))
    assert rollout_metrics([as_published], version=5)["scored_tokens"] == 0


def test_metrics_of_groups_without_likelihoods_and_without_spread() -> None:
    """RPT requests no likelihoods: no gain is reported, rather than a gain of 0."""
    two = (thought(2, True, 5), thought(4, True, 5))
    bare = replace(result("s", ((1.0, 1.0),), (two,)), policy_logprobs_KG=((),))
    values = rollout_metrics([bare], version=5)
    assert (values["zero_variance_share"], values["reward_group_std"]) == (1.0, 0.0)
    assert not {"information_gain", "think_nll"} & values.keys()


def test_the_95th_percentile_is_the_nearest_rank() -> None:
    """Of 20 thoughts, 1 to 20 tokens long, the 19th."""
    thoughts = tuple(thought(n, True, 5) for n in range(1, 21))
    values = rollout_metrics([result("s", ((0.0,) * 20,), (thoughts,))], version=5)
    assert values["thought_tokens_p95"] == 19


def test_metrics_of_a_batch_in_which_every_task_failed() -> None:
    failed = result("s", (), (), error="no")
    assert rollout_metrics([failed], version=3) == {"num_groups": 0}
    assert rollout_metrics([], version=3) == {"num_groups": 0}


def section(**values: Any) -> LearnerSection:
    return LearnerSection(**{"steps": 100, "learning_rate": 0.1, "grad_clip_norm": 0.0, **values})


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [  # after 0, 9, 10, 55, 73, 82, 91, 100 and 500 of 100 steps, 10 of them warm-up
        ("constant", [0.1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.1, 1, 1, 0.5, 0.3, 0.2, 0.1, 0, 0]),
        ("cosine", [0.1, 1, 1, 0.5, 0.2061074, 0.0954915, 0.0244717, 0, 0]),
        ("warmup_stable_decay", [0.1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_schedules(schedule: str, factors: list[float]) -> None:
    given = section(schedule=schedule, warmup_steps=10)
    steps = [0, 9, 10, 55, 73, 82, 91, 100, 500]
    assert [schedule_factor(given, n) for n in steps] == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "warmup_stable_decay"])
@pytest.mark.parametrize("warmup_steps", [0, 7, 200])
def test_schedules_rise_then_never_rise_again(schedule: str, warmup_steps: int) -> None:
    given = section(schedule=schedule, warmup_steps=warmup_steps)
    factors = [schedule_factor(given, n) for n in range(300)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
    assert all(a < b for a, b in pairwise(factors[:warmup_steps]))
    assert all(a >= b for a, b in pairwise(factors[max(0, warmup_steps - 1) :]))


def test_optimizer_passes_and_next_token_steps_count_as_updates() -> None:
    """100 batches of two optimizer passes, and a next-token step after every 10th: 210 updates."""
    given = section(schedule="linear", inner_epochs=2, next_token_every_steps=10)
    assert [schedule_factor(given, n) for n in (0, 105, 210)] == pytest.approx([1.0, 0.5, 0.0])


def make_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).to(dtype)


def backward(model: torch.nn.Module, seed: int) -> None:
    """Leave random numbers as the gradient, by a backward pass like any other."""
    generator = torch.Generator().manual_seed(seed)
    model.zero_grad()
    terms = [
        (p * torch.randn(p.shape, generator=generator).to(p.dtype)) for p in model.parameters()
    ]
    torch.autograd.backward([term.sum() for term in terms])


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_only_matrices_decay() -> None:
    """With zero gradients AdamW's own update is zero, so what moves is decay: w (1 - lr * decay)."""
    model = make_model()
    before = weights(model)
    optimizer = MasterOptimizer(model, section(weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    norm, learning_rate = optimizer.step(0)
    assert (norm, learning_rate) == (0.0, 0.1)
    for name, after in weights(model).items():
        factor = 1 - 0.1 * 0.5 if after.ndim >= 2 else 1.0
        assert torch.allclose(after, before[name] * factor, atol=1e-7), name
        assert (name == "0.weight") == (after.ndim >= 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_many_micro_batches_are_summed_in_float32(dtype: torch.dtype) -> None:
    """8,192 gradients of 1e-4 are 0.82; a bfloat16 sum of them stands still at 0.031."""
    model = torch.nn.Linear(2, 1, bias=False).to(dtype)
    optimizer = MasterOptimizer(model, section())
    for _ in range(8192):
        torch.autograd.backward([(model.weight * 1e-4).sum()])
    one = float(torch.tensor(1e-4, dtype=dtype))
    (master,) = optimizer.masters.values()
    assert master.grad is not None
    assert master.grad.tolist() == [pytest.approx([8192 * one] * 2, rel=1e-4)]
    assert optimizer.step(0)[0] == pytest.approx(8192 * one * math.sqrt(2), rel=1e-4)


def test_sums_start_anew_after_zero_grad() -> None:
    model = make_model(torch.bfloat16)
    optimizer = MasterOptimizer(model, section())
    backward(model, 1)
    optimizer.zero_grad()
    assert all(p.grad is None for p in (*model.parameters(), *optimizer.masters.values()))
    assert optimizer.step(0)[0] == 0.0


def test_a_step_is_adamw_with_the_schedules_rate() -> None:
    model, plain = make_model(), make_model()
    optimizer = MasterOptimizer(model, section(schedule="linear", beta1=0.8, beta2=0.95))
    reference = torch.optim.AdamW(plain.parameters(), betas=(0.8, 0.95), weight_decay=0.0)
    for step in range(3):
        backward(model, step)
        backward(plain, step)
        assert optimizer.step(step)[1] == pytest.approx(0.1 * (1 - step / 100))
        reference.param_groups[0]["lr"] = 0.1 * (1 - step / 100)
        reference.step()
    for name, value in weights(plain).items():
        assert torch.allclose(weights(model)[name], value, atol=1e-6)


def test_gradients_are_clipped_and_the_norm_before_clipping_is_reported() -> None:
    model = make_model()
    optimizer = MasterOptimizer(model, section(grad_clip_norm=0.5))
    backward(model, 1)
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    norm, _ = optimizer.step(0)
    assert norm == pytest.approx(expected)
    clipped = [master.grad for master in optimizer.masters.values()]
    assert math.sqrt(sum(float((g**2).sum()) for g in clipped if g is not None)) == pytest.approx(
        0.5
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    model = make_model()
    optimizer = MasterOptimizer(model, section(weight_decay=0.5, grad_clip_norm=1.0))
    backward(model, 1)
    optimizer.step(0)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    backward(model, 2)
    next(iter(model.parameters())).grad[0, 0] = bad  # type: ignore[index]
    assert not math.isfinite(optimizer.step(1)[0])
    assert optimizer.state().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_continues_as_if_it_had_never_stopped(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer = MasterOptimizer(model, section(weight_decay=0.1))
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step(step)
    saved = {name: value.clone() for name, value in optimizer.state().items()}
    other = make_model(dtype)
    resumed = MasterOptimizer(other, section(weight_decay=0.1))
    resumed.restore(saved)
    assert resumed.state().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in resumed.state().items())
    for step in range(3, 6):
        for each, its in ((model, optimizer), (other, resumed)):
            its.zero_grad()
            backward(each, step)
            its.step(step)
    assert all(torch.equal(v, optimizer.state()[n]) for n, v in resumed.state().items())
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(other).items())


def test_restored_state_is_a_copy() -> None:
    model = make_model()
    optimizer = MasterOptimizer(model, section())
    backward(model, 0)
    optimizer.step(0)
    saved = {name: value.clone() for name, value in optimizer.state().items()}
    kept = {name: value.clone() for name, value in saved.items()}
    optimizer.restore(saved)
    backward(model, 1)
    optimizer.step(1)
    assert all(torch.equal(value, kept[name]) for name, value in saved.items())


def test_the_state_before_the_first_step_is_the_masters() -> None:
    model = make_model(torch.bfloat16)
    state = MasterOptimizer(model, section()).state()
    assert state.keys() == {f"master/{name}" for name, _ in model.named_parameters()}
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("is_tied", [True, False])
def test_rows_of_new_tokens_move_faster(is_tied: bool) -> None:
    """Those of the embedding and of a head of its own, and no other."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def updates(factor: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=12,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=is_tied,
        )
        model = LlamaForCausalLM(config)
        optimizer = MasterOptimizer(model, LearnerSection(grad_clip_norm=0.0))
        optimizer.speed_up_rows(model, (10, 11), factor)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        ids = torch.tensor([[3, 10, 4, 11, 5]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step(0)
        return {name: p.detach() - before[name] for name, p in model.named_parameters()}

    usual, fast = updates(1.0), updates(20.0)
    tables = [name for name in usual if "embed_tokens" in name or "lm_head" in name]
    assert len(tables) == 2 - is_tied
    for name, update in usual.items():
        expected = update.clone()
        if name in tables:
            expected[10:] *= 20
            assert update[10:].abs().max() > 0
        assert torch.allclose(fast[name], expected, rtol=1e-3, atol=1e-8)
