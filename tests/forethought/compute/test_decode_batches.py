"""Decode batches: every sample once, in order, within the budget."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from forethought.compute.decode_batches import decode_batches
from forethought.compute.sampling import SampleRequest


def random_requests(rng: Random) -> list[SampleRequest]:
    return [
        SampleRequest(
            (5,) * rng.randint(1, 60),
            tuple(range(1000 * i, 1000 * i + rng.randint(1, 40))),
            max_tokens=rng.randint(1, 20),
            temperature=1.0,
            stop_ids=(),
            prediction_tokens=rng.randint(0, 9),
        )
        for i in range(30)
    ]


@pytest.mark.parametrize("max_tokens", [1, 50, 300, 5000, 10**9])
@pytest.mark.parametrize("row_tokens", [0, 7])
def test_batches_hold_every_sample_once_within_the_budget(max_tokens: int, row_tokens: int) -> None:
    requests = random_requests(Random(max_tokens))
    batches = list(decode_batches(requests, max_tokens, row_tokens))
    pieces = [piece for batch in batches for piece in batch]
    assert [(i, seed) for i, piece in pieces for seed in piece.seeds_G] == [
        (i, seed) for i, request in enumerate(requests) for seed in request.seeds_G
    ]
    for batch in batches:
        num_rows = sum(len(piece.seeds_G) for _, piece in batch)
        longest = max(len(p.prefix_ids) + p.max_length + row_tokens for _, p in batch)
        assert num_rows * longest <= max_tokens or num_rows == 1
    for batch, following in pairwise(batches):
        both = [*batch, following[0]]
        rows = sum(len(piece.seeds_G) for _, piece in both)
        assert (
            rows * max(len(p.prefix_ids) + p.max_length + row_tokens for _, p in both) > max_tokens
        )
