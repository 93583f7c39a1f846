"""Decode batches: sampling within a budget of padded tokens.

Design: every sample has a random generator of its own, so a batch may be cut anywhere, also between the
samples of one request, and the tokens stay the same (up to the rounding of another batch shape). A row is
charged for the tokens that its key-value cache can hold and for its logits. The price of a cut request is a
second prefill of its prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from forethought.compute.rows import pad_left, tail_logits
from forethought.compute.sampling import Sample, SampleRequest, sample

_LOGITS_PER_TOKEN = 1024
_PROBE_TOKENS = 2


def sample_within(
    model: Any,
    requests: Sequence[SampleRequest],
    max_batch_tokens: int,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[list[Sample]]:
    """As :func:`sample`, in batches of at most ``max_batch_tokens`` tokens, rows times the longest.

    A row's logits count as one token per 1,024 of them. A row longer than the budget is decoded alone.

    Raises:
        CancelledError: ``is_cancelled`` became true between two tokens.
    """
    row_tokens = model.get_input_embeddings().num_embeddings // _LOGITS_PER_TOKEN
    results: list[list[Sample]] = [[] for _ in requests]
    for batch in decode_batches(requests, max_batch_tokens, row_tokens):
        drawn = sample(model, [request for _, request in batch], is_cancelled)
        for (index, _), samples in zip(batch, drawn, strict=True):
            results[index] += samples
    return results


def decode_batches(
    requests: Sequence[SampleRequest], max_batch_tokens: int, row_tokens: int = 0
) -> Iterator[list[tuple[int, SampleRequest]]]:
    """Consecutive requests with their indices, cut so that rows times the longest stays in the budget.

    ``row_tokens`` is charged for every row in addition to its prefix and its longest sample.
    """
    batch: list[tuple[int, SampleRequest]] = []
    num_rows = longest = 0
    for index, request in enumerate(requests):
        length = len(request.prefix_ids) + request.max_length + row_tokens
        for piece in _pieces(request, max(1, max_batch_tokens // length)):
            num_new = len(piece.seeds_G)
            if batch and (num_rows + num_new) * max(longest, length) > max_batch_tokens:
                yield batch
                batch, num_rows, longest = [], 0, 0
            batch.append((index, piece))
            num_rows, longest = num_rows + num_new, max(longest, length)
    if batch:
        yield batch


@torch.inference_mode()
def cache_bytes_per_token(model: Any) -> int:
    """Bytes of key-value cache per token and row, measured on two tokens."""
    cache: Any = DynamicCache(config=model.config)
    device = next(iter(model.parameters())).device
    tail_logits(model, pad_left([(0,) * _PROBE_TOKENS], device), 1, cache)
    tensors = [
        value
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    ]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(1, num_bytes // _PROBE_TOKENS)


def _pieces(request: SampleRequest, num_samples: int) -> Iterator[SampleRequest]:
    seeds_G = request.seeds_G
    if len(seeds_G) <= num_samples:
        yield request
        return
    for start in range(0, len(seeds_G), num_samples):
        yield replace(request, seeds_G=seeds_G[start : start + num_samples])
