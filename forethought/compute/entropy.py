"""Entropy of every next-token prediction, by which positions are selected (arXiv 2506.08007, section 3.3).

Design: the entropy of token i of N is that of predicting it from the tokens before it, over the
``top_k`` likeliest tokens (RPT: 16). RPT does not state whether those are renormalised, so the caller
chooses: without, the sum is ``-sum p log p`` with p of the whole distribution, a lower bound of the
entropy that ignores the tail; with, p sums to 1 over the k. Taking the k logits first costs nothing:
only the log-normaliser of the rest is needed. Sums are in float64, because thresholds and files compare
digits that float32 sums would round away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forethought.compute.rows import pad_left, padded_tokens, row_batches, tail_logits

_LOGITS_PER_TOKEN = 1024
_CHUNK_TOKENS = 128  # of a row whose logits are held in float64 at once


@dataclass(frozen=True, slots=True)
class EntropyQuery:
    """Tokens to predict one after the other (at least two), and the number of candidates.

    ``prefix_ids`` precede them and are not predicted: the model's BOS.

    Example:
        ``EntropyQuery((5, 17, 9), top_k=16, renormalise=False)``
    """

    token_ids_N: tuple[int, ...]
    top_k: int
    renormalise: bool
    prefix_ids: tuple[int, ...] = ()


def entropies(
    model: Any, queries: Sequence[EntropyQuery], max_batch_tokens: int
) -> list[tuple[float, ...]]:
    """Entropy in nats of predicting tokens 1 to N-1 of every query. Shape [N - 1] each, in order."""
    width = 1 + model.get_input_embeddings().num_embeddings // _LOGITS_PER_TOKEN
    costs = [len(q.prefix_ids) + (1 + width) * len(q.token_ids_N) for q in queries]
    results: list[tuple[float, ...]] = [()] * len(queries)
    lengths = [len(query.prefix_ids) + len(query.token_ids_N) for query in queries]
    for indices in row_batches(lengths, costs, max_batch_tokens, padded_tokens(model)):
        batch = _batch(model, [queries[i] for i in indices])
        for index, result in zip(indices, batch, strict=True):
            results[index] = result
    return results


@torch.inference_mode()
def _batch(model: Any, queries: list[EntropyQuery]) -> list[tuple[float, ...]]:
    device = next(iter(model.parameters())).device
    # No prediction after a row's last token is needed, so it is not an input.
    rows = pad_left([query.prefix_ids + query.token_ids_N[:-1] for query in queries], device)
    num_tail = max(len(query.token_ids_N) for query in queries) - 1
    logits = tail_logits(model, rows, num_tail)  # [B, N - 1, V]
    return [
        tuple(_row(logits[index, -(len(query.token_ids_N) - 1) :], query).tolist())
        for index, query in enumerate(queries)
    ]


def _row(logits: torch.Tensor, query: EntropyQuery) -> torch.Tensor:
    chunks = torch.split(logits, _CHUNK_TOKENS)
    return torch.cat([_chunk(chunk, query) for chunk in chunks])


def _chunk(logits: torch.Tensor, query: EntropyQuery) -> torch.Tensor:
    """Sum in float64, return float32: the precision of both transports and of files."""
    top = logits.topk(min(query.top_k, logits.shape[-1]), dim=-1).values.double()
    of = top if query.renormalise else logits.double()
    logprobs = top - of.logsumexp(dim=-1, keepdim=True)
    return -(logprobs.exp() * logprobs).sum(dim=-1).float()
