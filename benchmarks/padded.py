"""The naive side of benchmarks: every thought a padded row with its own context, in float32.

What a straightforward implementation computes, and what Forethought itself did before thoughts shared
their context: rows of similar length are padded on the left into micro-batches of a token budget, and the
vocabulary projection is computed only where log-probs are needed. Scoring and learning repeat a context
for each of its thoughts. Sampling prefills a context once, copies its cache for each thought and drops
the rows that have stopped.

Design: nothing of ``forethought`` is imported, so that this side stays the same when that changes. The
price is a second implementation of padding, sampling and the loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens in ``continuation_ids`` are scored after ``context_ids``; ``removed_id`` has no mass.

    Example:
        ``Row((1, 5, 9), (42,), removed_id=39)``
    """

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    removed_id: int | None = None


@dataclass(frozen=True, slots=True)
class LearnedRow:
    """A row whose continuation is learned: one weight and one advantage for all of its tokens.

    Example:
        ``LearnedRow(Row((1, 5, 39), (4, 40)), (-0.7, -0.1), advantage=1.2, weight=0.0625)``
    """

    row: Row
    behaviour_logprobs_H: tuple[float, ...]
    advantage: float
    weight: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled thought and its log-probs.

    Example:
        ``Drawn((4, 6, 40), (-0.1, -0.7, -0.01))``
    """

    token_ids_L: tuple[int, ...]
    logprobs_L: tuple[float, ...]


@torch.inference_mode()
def sample(
    model: Any,
    contexts: Sequence[tuple[int, ...]],
    group_size: int,
    max_tokens: int,
    *,
    max_batch_tokens: int,
    stop_ids: tuple[int, ...] = (),
) -> list[list[Drawn]]:
    """``group_size`` thoughts after each context, at temperature 1. Shape [contexts][G].

    A batch holds at most ``max_batch_tokens`` tokens of contexts and thoughts.
    """
    drawn: list[list[Drawn]] = [[] for _ in contexts]
    costs = [group_size * (len(context) + max_tokens) for context in contexts]
    for indices in micro_batches(costs, max_batch_tokens):
        groups = _decode([contexts[i] for i in indices], model, group_size, max_tokens, stop_ids)
        for index, group in zip(indices, groups, strict=True):
            drawn[index] = group
    return drawn


@torch.inference_mode()
def score(model: Any, rows: Sequence[Row], max_batch_tokens: int) -> list[list[float]]:
    """Log-probs of every continuation. Shape [rows][H]; micro-batches are of ``max_batch_tokens``."""
    scored: list[list[float]] = [[] for _ in rows]
    for indices in micro_batches([_length(row) for row in rows], max_batch_tokens):
        batch = [rows[i] for i in indices]
        for index, logprobs_H in zip(indices, logprobs_of(model, batch).tolist(), strict=True):
            scored[index] = logprobs_H[-len(rows[index].continuation_ids) :]
    return scored


def learn(
    model: Any,
    rows: Sequence[LearnedRow],
    max_batch_tokens: int,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> float:
    """Add the gradient of the clipped surrogate (RLP eq. 8) to the model's; returns the loss."""
    total = 0.0
    for indices in micro_batches([_length(learned.row) for learned in rows], max_batch_tokens):
        batch = [rows[i] for i in indices]
        logprobs_BH = logprobs_of(model, [learned.row for learned in batch])
        width = logprobs_BH.shape[1]
        weights_BH = _aligned([(r.weight,) * len(r.behaviour_logprobs_H) for r in batch], width)
        behaviour_BH = _aligned([r.behaviour_logprobs_H for r in batch], width)
        advantages_B1 = torch.tensor([[learned.advantage] for learned in batch])
        ratio_BH = torch.where(weights_BH != 0, logprobs_BH - behaviour_BH, 0.0).exp()
        clipped_BH = ratio_BH.clamp(1 - clip_low, 1 + clip_high)
        gain_BH = torch.minimum(ratio_BH * advantages_B1, clipped_BH * advantages_B1)
        loss = -(weights_BH * gain_BH).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of similar length, at most ``max_tokens`` with the padding; a longer row is alone."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def logprobs_of(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Log-probs of the continuations in one padded forward pass, aligned on the right. Shape [B, H]."""
    # No prediction after a row's last token is needed, so it is not an input.
    padded = _pad_left([(row.context_ids + row.continuation_ids)[:-1] for row in rows])
    num_tail = max(len(row.continuation_ids) for row in rows)
    logits = model(**padded, logits_to_keep=num_tail, use_cache=False).logits.float()
    for index, row in enumerate(rows):
        if row.removed_id is not None:
            logits[index, :, row.removed_id] = float("-inf")
    targets_BH = _aligned([row.continuation_ids for row in rows], num_tail).long()
    chosen = torch.log_softmax(logits, dim=-1).gather(2, targets_BH[..., None])
    return chosen[..., 0]


def _decode(
    contexts: Sequence[tuple[int, ...]],
    model: Any,
    group_size: int,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> list[list[Drawn]]:
    """One decode batch: the contexts' caches, copied for each thought, then token by token."""
    rows = _pad_left(contexts)
    cache = DynamicCache(config=model.config)
    logits = _next_logits(model, rows, cache)
    alive = torch.arange(len(contexts)).repeat_interleave(group_size)
    cache.batch_select_indices(alive)
    logits, rows = logits[alive], {name: values[alive] for name, values in rows.items()}
    drawn = [Drawn((), ()) for _ in alive]
    alive = torch.arange(len(drawn))
    while True:
        kept, ids = _extend(drawn, alive.tolist(), logits, max_tokens, stop_ids)
        if not kept:
            return [drawn[i : i + group_size] for i in range(0, len(drawn), group_size)]
        if len(kept) < len(alive):
            cache.batch_select_indices(torch.tensor(kept))
        alive = alive[kept]
        mask = rows["attention_mask"][kept]
        rows = {
            "input_ids": ids[kept],
            "attention_mask": torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1),
            "position_ids": rows["position_ids"][kept, -1:] + 1,
        }
        logits = _next_logits(model, rows, cache)


def _next_logits(model: Any, rows: dict[str, torch.Tensor], cache: Any) -> torch.Tensor:
    is_new = "cache" in inspect.signature(type(model).forward).parameters
    given = {"cache" if is_new else "past_key_values": cache}  # transformers renamed it
    output = model(**rows, **given, logits_to_keep=1, use_cache=True)
    return output.logits[:, -1].float()  # type: ignore[no-any-return]


def _extend(
    drawn: list[Drawn],
    alive: list[int],
    logits: torch.Tensor,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[list[int], torch.Tensor]:
    """Draw a token for every row still alive; which of them go on, and the tokens."""
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = torch.multinomial(logprobs.exp(), 1)
    chosen = logprobs.gather(1, ids)[:, 0].tolist()
    kept = []
    for slot, (row, token_id) in enumerate(zip(alive, ids[:, 0].tolist(), strict=True)):
        before = drawn[row]
        after = Drawn((*before.token_ids_L, token_id), (*before.logprobs_L, chosen[slot]))
        drawn[row] = after
        if token_id not in stop_ids and len(after.token_ids_L) < max_tokens:
            kept.append(slot)
    return kept, ids


def _length(row: Row) -> int:
    return len(row.context_ids) + len(row.continuation_ids)


def _pad_left(rows: Sequence[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    mask = _aligned([(1,) * len(row) for row in rows], width).long()
    return {
        "input_ids": _aligned(rows, width).long(),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
    }


def _aligned(rows: Sequence[Sequence[float]], width: int) -> torch.Tensor:
    """Values aligned on the right, 0 before them. Shape [B, width]."""
    return torch.tensor([(0,) * (width - len(row)) + tuple(row) for row in rows])
