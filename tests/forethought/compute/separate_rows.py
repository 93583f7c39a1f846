"""The reference for everything that shares a context: each row alone, whole, without padding or cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from forethought.compute.logprob import Continuation, ContinuationScore
from forethought.compute.sampling import Sample, SampleRequest


def row_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """The logits after every token of a row. Shape [T, V]."""
    output = model(input_ids=torch.tensor([token_ids]), use_cache=False)
    logits: torch.Tensor = output.logits[0].float()
    return logits


def row_logprobs(model: Any, token_ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """log p of every token of a row after the first. Shape [T - 1]."""
    logprobs = torch.log_softmax(row_logits(model, token_ids[:-1]) / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]


@torch.no_grad()
def score(model: Any, query: Continuation) -> ContinuationScore:
    """As ``score_continuations`` promises."""
    row, num = query.prefix_ids + query.continuation_ids, len(query.continuation_ids)
    logits = row_logits(model, row[:-1])[-num:]
    if query.removed_id is not None:
        logits[:, query.removed_id] = -torch.inf
    targets = torch.tensor(query.continuation_ids)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    return ContinuationScore(
        tuple(logprobs.tolist()), tuple((logits.argmax(dim=-1) == targets).tolist())
    )


@torch.no_grad()
def redrawn(model: Any, request: SampleRequest, seed: int, drawn: Sample) -> Sample:
    """What a seed draws after each beginning of a sample: the sample itself, if it was drawn so.

    By induction over its tokens, this is the sample that a loop without a cache would draw.
    """
    row, num = request.prefix_ids + drawn.token_ids_L, len(drawn.token_ids_L)
    logits = row_logits(model, row[:-1])[-num:] / request.temperature
    if request.stop_ids:
        logits[: request.min_tokens, list(request.stop_ids)] = -torch.inf
    logprobs = torch.log_softmax(logits, dim=-1)
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(request.max_length, generator=generator, dtype=torch.float64)
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    points = uniforms[:num, None] * cumulative[:, -1:]
    ids = (cumulative <= points).sum(dim=-1)
    return _until_its_end(request, ids.tolist(), logprobs)


def _until_its_end(request: SampleRequest, ids: list[int], logprobs_LV: torch.Tensor) -> Sample:
    stop = next((i for i, token_id in enumerate(ids) if token_id in request.stop_ids), None)
    end = request.max_tokens if stop is None else stop + 1
    if stop is not None and request.prediction_tokens:
        predicted = ids[end : end + request.prediction_tokens]
        stops = (
            i for i, token_id in enumerate(predicted) if token_id in request.prediction_stop_ids
        )
        end += next(stops, len(predicted) - 1) + 1
    kept = ids[:end]
    chosen = (float(logprobs_LV[i, token_id]) for i, token_id in enumerate(kept))
    num_predicted = len(kept) - (stop + 1) if stop is not None else 0
    return Sample(tuple(kept), tuple(chosen), stop is not None, num_predicted)
