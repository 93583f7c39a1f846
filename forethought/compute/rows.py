"""Padding ragged rows before they are decoded with a cache.

Design: rows are padded on the *left*, so that the last token of every row, from which the next one follows,
is at the same place and transformers' ``logits_to_keep`` computes the vocabulary projection only there. The
price is explicit position ids and a mask. Batches are by length under a token budget.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Left-padded rows: ``input_ids``, ``attention_mask`` and ``position_ids``, each [B, T].

    Example:
        ``pad_left([[5, 6], [7]], device)`` has attention mask ``[[1, 1], [0, 1]]``
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> PaddedRows:
    """Pad rows of token ids on the left with id 0, masked."""
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, width - len(row) :] = 1
    position_ids = (mask.cumsum(1) - 1).clamp_min(0)
    return PaddedRows(input_ids.to(device), mask.to(device), position_ids.to(device))


def tail_logits(model: Any, rows: PaddedRows, num_tail: int, cache: Any = None) -> torch.Tensor:
    """Logits of the last ``num_tail`` positions, float32. Shape [B, num_tail, V].

    With a ``cache``, ``rows`` follow the cached tokens, and their keys and values are appended in place.
    """
    kind: type = type(model)
    options: dict[str, Any] = {"use_cache": cache is not None}
    if accepts(kind, "logits_to_keep"):
        options["logits_to_keep"] = num_tail
    if accepts(kind, "position_ids"):
        options["position_ids"] = rows.position_ids
    if cache is not None:
        # Renamed in transformers 5; older releases and custom code use the long name.
        options["cache" if accepts(kind, "cache") else "past_key_values"] = cache
    output = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, **options)
    logits: torch.Tensor = output.logits[:, -num_tail:].float()
    return logits


def logits_at(
    model: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    places: Sequence[int] | None = None,
) -> torch.Tensor:
    """Logits at some places of a packed row (None: all), float32. Shape [places, V]."""
    kind: type = type(model)
    options: dict[str, Any] = {}
    index = None if places is None else torch.tensor(places, device=input_ids.device)
    if index is not None and accepts(kind, "logits_to_keep"):
        options["logits_to_keep"], index = index, None
    output = model(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=torch.ones_like(input_ids),
        use_cache=False,
        **options,
    )
    logits: torch.Tensor = output.logits[0] if index is None else output.logits[0, index]
    return logits.float()


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length so that rows x longest stays within ``max_tokens``.

    A row longer than the budget is batched alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@lru_cache(maxsize=64)
def accepts(model_type: Any, name: str) -> bool:
    """Whether a model's forward method has an argument of this name."""
    return name in inspect.signature(model_type.forward).parameters
