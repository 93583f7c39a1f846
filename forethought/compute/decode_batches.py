"""Decode batches: sampling within a budget of the tokens whose keys and values are kept at once.

    trees         trunks + rows * (longest tail + new tokens)
    other forms   rows * (longest prefix + new tokens)

Design: every sample has a random generator of its own, so a batch may be cut anywhere, also between the
samples of one request, and the tokens stay the same (up to the rounding of another batch shape). A row is
charged for the tokens that it may come to hold and for its logits; with trees the charge is that of the
plan by which a batch is decoded, so it is exact. The price of a cut is a second prefill of what both
batches share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from forethought.compute.decoding import decoding
from forethought.compute.decoding.decoder import Group
from forethought.compute.decoding.plan import plan_of
from forethought.compute.decoding.tree_decoder import TreeDecoder
from forethought.compute.forms import DecodingForm, forms_of
from forethought.compute.rows import pad_left, tail_logits
from forethought.compute.sampling import Sample, SampleRequest, sample

_LOGITS_PER_TOKEN = 1024
_PROBE_TOKENS = 2
_RECOMPUTED_TOKENS = (
    16_384  # of a batch that keeps no keys and values, but computes all of its tokens
)


def sample_within(
    model: Any,
    requests: Sequence[SampleRequest],
    max_batch_tokens: int,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[list[Sample]]:
    """As :func:`sample`, in batches that keep at most ``max_batch_tokens`` tokens.

    A row's logits count as one token per 1,024 of them. A row longer than the budget is decoded alone.

    Raises:
        CancelledError: ``is_cancelled`` became true between two tokens.
    """
    results: list[list[Sample]] = [[] for _ in requests]
    form = forms_of(model).decoding
    for batch in decode_batches(requests, max_batch_tokens, form, row_tokens(model)):
        drawn = sample(model, [request for _, request in batch], is_cancelled)
        for (index, _), samples in zip(batch, drawn, strict=True):
            results[index] += samples
    return results


def decode_batches(
    requests: Sequence[SampleRequest],
    max_batch_tokens: int,
    form: DecodingForm,
    num_row_tokens: int = 0,
) -> Iterator[list[tuple[int, SampleRequest]]]:
    """Consecutive requests with their indices; a request is cut only if it exceeds the budget by itself.

    ``num_row_tokens`` are charged for every row in addition to those it holds.
    """

    def fits(batch: Sequence[SampleRequest]) -> bool:
        return num_tokens(batch, form, num_row_tokens) <= max_batch_tokens

    def num_fitting(left: Sequence[tuple[int, SampleRequest]]) -> int:
        return _largest(len(left), lambda size: fits([request for _, request in left[:size]]))

    left = list(enumerate(requests))
    while left:
        size = num_fitting(left)
        if not size:
            index, request = left[0]
            first, rest = _cut(request, lambda piece: fits([piece]))
            left[:1] = [(index, first), *([(index, rest)] if rest.seeds_G else [])]
            size = 1
        yield left[:size]
        left = left[size:]


def num_tokens(
    requests: Sequence[SampleRequest], form: DecodingForm, num_row_tokens: int = 0
) -> int:
    """The most tokens that requests keep while they are decoded together."""
    num_rows = sum(len(request.seeds_G) for request in requests)
    if form == "trees":
        return (
            plan_of([request.group for request in requests]).num_tokens + num_rows * num_row_tokens
        )
    longest = max(len(request.prefix_ids) for request in requests)
    return num_rows * (longest + max(r.max_length for r in requests) + num_row_tokens)


def row_tokens(model: Any) -> int:
    """What a row's logits count, in tokens."""
    return int(model.get_input_embeddings().num_embeddings) // _LOGITS_PER_TOKEN


def tokens_within(model: Any, num_bytes: int) -> int:
    """How many tokens' keys and values a decode batch keeps in this memory."""
    if forms_of(model).decoding == "recompute":
        return _RECOMPUTED_TOKENS
    return max(1, num_bytes // cache_bytes_per_token(model))


@torch.inference_mode()
def cache_bytes_per_token(model: Any) -> int:
    """Bytes of keys and values per token that is kept, measured on two tokens."""
    device = next(iter(model.parameters())).device
    probe = (0,) * _PROBE_TOKENS
    if forms_of(model).decoding == "trees":
        with decoding(model, [Group(probe, 1, 1)], "trees") as decoder:
            assert isinstance(decoder, TreeDecoder)
            decoder.first_logits()
            return max(1, decoder.trunk_bytes // _PROBE_TOKENS)
    cache: Any = DynamicCache(config=model.config)
    tail_logits(model, pad_left([probe], device), 1, cache)
    tensors = [
        value
        for layer in cache.layers
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor)
    ]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(1, num_bytes // _PROBE_TOKENS)


def _cut(
    request: SampleRequest, fits: Callable[[SampleRequest], bool]
) -> tuple[SampleRequest, SampleRequest]:
    """The most samples that fit, at least one, and the others."""
    seeds_G = request.seeds_G
    size = _largest(len(seeds_G), lambda size: fits(replace(request, seeds_G=seeds_G[:size])))
    size = max(1, size)
    return replace(request, seeds_G=seeds_G[:size]), replace(request, seeds_G=seeds_G[size:])


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, 0 if none does: doubled, then bisected."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
