"""Stops: single tokens and sequences, compared with ids alone."""

from __future__ import annotations

from random import Random

import pytest

from forethought.stops import Stops

SOME = Stops(ids=(9,), sequences=((1, 2), (1, 1, 3)))


@pytest.mark.parametrize(
    ("token_ids", "end"),
    [
        ((), None),
        ((9,), 1),
        ((1,), None),
        ((2,), None),
        ((1, 2), 2),
        ((1, 1, 2), 3),
        ((1, 1, 3, 9), 3),
        ((1, 3, 2, 1, 5), None),
        ((5, 9, 1, 2), 2),
        ([4, 1, 1, 1, 3], 5),  # begins again within itself
    ],
)
def test_a_sample_ends_at_its_first_completed_stop(
    token_ids: tuple[int, ...], end: int | None
) -> None:
    assert SOME.end(token_ids) == end


def test_only_the_last_tokens_of_stops_complete_one() -> None:
    assert Stops().last_ids == ()
    assert SOME.last_ids == (9, 2, 3)
    rng = Random(0)
    for _ in range(300):
        drawn = tuple(rng.choice((1, 2, 3, 4)) for _ in range(6))
        as_text = "".join(map(str, drawn))
        found = [at + len(s) for s in ("12", "113") if (at := as_text.find(s)) >= 0]
        assert SOME.end(drawn) == min(found, default=None)
        assert SOME.end_here(drawn) == as_text.endswith(("12", "113"))
        assert not SOME.end_here(drawn) or drawn[-1] in SOME.last_ids
