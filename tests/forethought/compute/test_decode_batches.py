"""Decode batches: every sample once, in order, within the budget."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from forethought.compute.decode_batches import decode_batches, num_tokens
from forethought.compute.forms import DecodingForm
from forethought.compute.sampling import SampleRequest

DOCUMENT = tuple(Random(0).choices(range(100), k=60))


def random_requests(rng: Random) -> list[SampleRequest]:
    """Positions of a document, whose beginning some of them lack."""
    return [
        SampleRequest(
            (*DOCUMENT[rng.choice([0, 0, 0, 1]) :][: rng.randint(1, 59)], 7),
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
@pytest.mark.parametrize("form", ["trees", "cache"])
def test_batches_hold_every_sample_once_within_the_budget(
    form: DecodingForm, max_tokens: int, row_tokens: int
) -> None:
    requests = random_requests(Random(max_tokens))
    batches = list(decode_batches(requests, max_tokens, form, row_tokens))
    pieces = [piece for batch in batches for piece in batch]
    assert [(i, seed) for i, piece in pieces for seed in piece.seeds_G] == [
        (i, seed) for i, request in enumerate(requests) for seed in request.seeds_G
    ]
    for batch in batches:
        num_rows = sum(len(piece.seeds_G) for _, piece in batch)
        cost = num_tokens([piece for _, piece in batch], form, row_tokens)
        assert cost <= max_tokens or num_rows == 1
    if form == "cache":  # with trees, a request more may cost less than it seems
        for batch, following in pairwise(batches):
            both = [piece for _, piece in [*batch, following[0]]]
            assert num_tokens(both, form, row_tokens) > max_tokens


def test_a_budget_holds_more_rows_of_one_document() -> None:
    """Sixteen positions of a document, with a bridge of a token, 4 samples each of at most 8 tokens."""
    requests = [
        SampleRequest((*DOCUMENT[:n], 7), (1, 2, 3, 4), 8, 1.0, ()) for n in range(28, 60, 2)
    ]
    assert num_tokens(requests, "trees") == 59 + 64 * (1 + 8)
    assert num_tokens(requests, "cache") == 64 * (59 + 8)
    assert len(list(decode_batches(requests, 700, "trees"))) == 1
    assert len(list(decode_batches(requests, 700, "cache"))) == 6
