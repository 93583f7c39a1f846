"""The naive side of the benchmarks computes what it should, or every ratio over it is worth nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import padded

CONTEXTS = [(5,), (7, 9, 11, 13), (17, 3)]
GROUP, NUM_TOKENS, STOP_ID = 4, 6, 2


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def drawn(model: Any) -> list[list[padded.Drawn]]:
    torch.manual_seed(1)
    return padded.sample(
        model, CONTEXTS, GROUP, NUM_TOKENS, max_batch_tokens=64, stop_ids=(STOP_ID, 4, 6)
    )


def alone(model: Any, row: padded.Row) -> torch.Tensor:
    """Log-probs of a row by itself, from the model's full logits. Shape [H]."""
    ids = torch.tensor([row.context_ids + row.continuation_ids])
    logits = model(input_ids=ids).logits[0, len(row.context_ids) - 1 : -1]
    if row.removed_id is not None:
        logits = logits.index_fill(1, torch.tensor([row.removed_id]), float("-inf"))
    return logits.log_softmax(-1).gather(1, torch.tensor(row.continuation_ids)[:, None])[:, 0]


def test_samples_carry_their_log_probs_and_end_at_a_stop_token(
    model: Any, drawn: list[list[padded.Drawn]]
) -> None:
    lengths = set()
    for context, group in zip(CONTEXTS, drawn, strict=True):
        assert len(group) == GROUP
        for thought in group:
            expected = alone(model, padded.Row(context, thought.token_ids_L))
            torch.testing.assert_close(torch.tensor(thought.logprobs_L), expected)
            stopped = [token_id in (STOP_ID, 4, 6) for token_id in thought.token_ids_L]
            assert not any(stopped[:-1])
            assert stopped[-1] or len(stopped) == NUM_TOKENS
            lengths.add(len(stopped))
    assert len(lengths) > 1, "nothing stopped early, so rows were never dropped"


def test_scores_in_padded_batches_are_those_of_rows_alone(
    model: Any, drawn: list[list[padded.Drawn]]
) -> None:
    rows = [
        padded.Row(context, thought.token_ids_L, removed_id=22)
        for context, group in zip(CONTEXTS, drawn, strict=True)
        for thought in group
        if 22 not in thought.token_ids_L
    ]
    for row, logprobs_H in zip(rows, padded.score(model, rows, max_batch_tokens=40), strict=True):
        torch.testing.assert_close(torch.tensor(logprobs_H), alone(model, row))


def test_the_gradient_is_that_of_the_surrogate_thought_by_thought(
    model: Any, drawn: list[list[padded.Drawn]]
) -> None:
    learned = [
        padded.LearnedRow(
            padded.Row(context, thought.token_ids_L),
            # far enough from the policy that some tokens are clipped
            tuple(logprob - 0.3 * (i % 2) for i, logprob in enumerate(thought.logprobs_L)),
            advantage=number - 1.5,
            weight=1 / len(thought.token_ids_L),
        )
        for context, group in zip(CONTEXTS, drawn, strict=True)
        for number, thought in enumerate(group)
    ]
    model.zero_grad()
    loss = padded.learn(model, learned, max_batch_tokens=40)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = torch.zeros(())
    for row in learned:
        ratio_H = (alone(model, row.row) - torch.tensor(row.behaviour_logprobs_H)).exp()
        clipped_H = ratio_H.clamp(0.8, 1.28) * row.advantage
        expected = expected - row.weight * torch.minimum(ratio_H * row.advantage, clipped_H).sum()
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)
