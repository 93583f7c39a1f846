"""Rows that share their beginnings, and their log-probs and gradients: alone, and packed as trees."""

from __future__ import annotations

from typing import Any

import torch

from forethought.compute.forms import Forms
from forethought.compute.packing import Row, packs_of
from forethought.compute.token_logprobs import Targets, logprobs
from tests.forethought.compute.separate_rows import row_logprobs

NUM_TAIL = 9
KINDS = (
    "llama",
    "mistral",  # window
    "gemma2",  # soft cap, window
    "gpt_oss",  # sinks, window
    "llama4_text/untuned",  # chunks
    "deepseek_v3",  # keys wider than values
)
"""Architectures of ``tests.architectures`` with every kind of attention that trees have."""

Computed = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Log-probs of the rows' last tokens, row by row, and gradients by parameter; all on the CPU."""


def rows() -> list[tuple[int, ...]]:
    """Three trees, longer than windows, chunks and blocks of queries, with branches that end in them."""
    draw = torch.Generator().manual_seed(1)

    def ids(num: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 200, (num,), generator=draw).tolist())

    trunks = [ids(60), ids(31)]
    branches = [
        trunk[:index] + ids(num)
        for trunk in trunks
        for index, num in ((len(trunk), 12), (len(trunk), 3), (len(trunk) // 2, 10), (5, 11))
    ]
    return [*branches, *trunks, ids(11)]


def alone(model: Any) -> Computed:
    """Each row by itself."""
    return _computed(model, torch.cat([row_logprobs(model, ids)[-NUM_TAIL:] for ids in rows()]))


def packed(model: Any) -> Computed:
    """All rows as trees in one pass."""
    tails = [Row(ids, NUM_TAIL) for ids in rows()]
    (pack,) = packs_of(tails, Forms("trees"), 10_000, model.device)
    ids = [token_id for row in pack.rows for token_id in tails[row].target_ids]
    of_pack = logprobs(model, pack, Targets(torch.tensor(ids, device=model.device)))
    by_row = of_pack.unflatten(0, (-1, NUM_TAIL))
    return _computed(model, by_row[torch.tensor(pack.rows).argsort().to(model.device)].flatten())


def _computed(model: Any, logprobs_M: torch.Tensor) -> Computed:
    model.zero_grad()
    weights_M = torch.linspace(-1, 1, len(logprobs_M), device=model.device)
    (weights_M * logprobs_M).sum().backward()
    named = ((name, p.grad) for name, p in model.named_parameters())
    gradients = {name: grad.float().cpu() for name, grad in named if grad is not None}
    return logprobs_M.detach().float().cpu(), gradients


def check_equal(ours: Computed, theirs: Computed, nats: float, of_norm: float) -> None:
    """Log-probs to so many nats, gradients to a share of each one's norm."""
    assert float((ours[0] - theirs[0]).abs().max()) < nats
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        error = float((ours[1][name] - gradient).norm() / gradient.norm().clamp_min(1e-6))
        assert error < of_norm, name
