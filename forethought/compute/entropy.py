"""Entropy of every next-token prediction, by which positions are selected (arXiv 2506.08007, section 3.3).

Design: the entropy of token i of N is that of predicting it from the tokens before it, over the
``top_k`` likeliest tokens (RPT: 16). RPT does not state whether those are renormalised, so the caller
chooses: without, the sum is ``-sum p log p`` with p of the whole distribution, a lower bound of the
entropy that ignores the tail; with, p sums to 1 over the k. Taking the k logits first costs nothing:
only the log-normaliser of the rest is needed. Logits are taken relative to the likeliest one, so that the
vocabulary can be summed in float32, a quarter of the time of float64, and the k terms in float64. The
price: an entropy of some 1e-6 nats is off in its sixth digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forethought.compute.forms import forms_of
from forethought.compute.packing import Pack, Row, packs_of
from forethought.compute.token_logprobs import Predictions

_CHUNK_TOKENS = 128  # of a row whose logits are held at once


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
    rows = [Row(q.prefix_ids + q.token_ids_N, len(q.token_ids_N) - 1) for q in queries]
    results: list[tuple[float, ...]] = [()] * len(queries)
    device = next(iter(model.parameters())).device
    for pack in packs_of(rows, forms_of(model), max_batch_tokens, device):
        of_pack = _of_pack(model, pack, [queries[i] for i in pack.rows])
        for index, result in zip(pack.rows, of_pack, strict=True):
            results[index] = result
    return results


@torch.inference_mode()
def _of_pack(model: Any, pack: Pack, queries: Sequence[EntropyQuery]) -> list[tuple[float, ...]]:
    predictions = Predictions(model, pack)
    parts = predictions.hidden_MD.split([len(query.token_ids_N) - 1 for query in queries])
    return [
        tuple(
            torch.cat(
                [_entropies(predictions.logits(h), query) for h in hidden.split(_CHUNK_TOKENS)]
            ).tolist()
        )
        for hidden, query in zip(parts, queries, strict=True)
    ]


def _entropies(logits: torch.Tensor, query: EntropyQuery) -> torch.Tensor:
    """Float32: the precision of both transports and of files."""
    top = logits.topk(min(query.top_k, logits.shape[-1]), dim=-1).values
    likeliest = top[:, :1]
    relative = (top - likeliest).double()
    of = relative.exp() if query.renormalise else (logits - likeliest).exp_()
    logprobs = relative - of.sum(dim=-1, keepdim=True).double().log()
    return -(logprobs.exp() * logprobs).sum(dim=-1).float()
