"""Evaluated positions: nested thresholds, the definition of noise, and reproducible draws."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from forethought.compute.model import Markers
from forethought.lab.evaluation.splits import (
    NAMES,
    CandidatePosition,
    DrawnPositions,
    draw_positions,
)
from forethought.lab.evaluation.text import LengthLimit, Noise, candidate_positions
from forethought.types import Document

OPEN_ID, CLOSE_ID = 39, 40


def places_of(num_documents: int, seed: int = 0) -> list[CandidatePosition]:
    rng = Random(seed)
    return [
        CandidatePosition(number, f"d{number}", index, rng.uniform(0, 2.5), is_marked=index == 3)
        for number in range(num_documents)
        for index in range(1, 9)
    ]


def chosen(drawn: DrawnPositions, name: str) -> set[tuple[str, int]]:
    asked = [drawn.places[i] for i in drawn.members[name]]
    return {(place.document_id, place.index) for place in asked}


def test_thresholds_are_those_of_rpt_and_nest() -> None:
    entropies = (0.0, 0.49, 0.5, 0.99, 1.0, 1.49, 1.5, 3.0)
    places = [CandidatePosition(0, "d", i, entropy) for i, entropy in enumerate(entropies)]
    drawn = draw_positions(places, NAMES, 100, seed=0)
    indices = {name: {i for _, i in chosen(drawn, name)} for name in drawn.members}
    assert indices == {
        "all": set(range(8)), "easy": {2, 3, 4, 5, 6, 7}, "medium": {4, 5, 6, 7}, "hard": {6, 7},
    }  # fmt: skip
    assert drawn.num_candidates == {"all": 8, "easy": 6, "medium": 4, "hard": 2}


def test_a_draw_depends_only_on_the_seed_and_splits_share_positions() -> None:
    places = places_of(50)
    drawn = draw_positions(places, NAMES, 20, seed=1)
    assert draw_positions(list(reversed(places)), NAMES, 20, seed=1) == drawn
    assert chosen(draw_positions(places, NAMES, 20, seed=2), "all") != chosen(drawn, "all")
    assert all(len(members) == 20 for members in drawn.members.values())
    # Whatever of the easy ones is hard is among the hard ones: no position is asked about in vain.
    hard = {(p.document_id, p.index) for p in places if p.entropy >= 1.5}
    assert chosen(drawn, "easy") & hard <= chosen(drawn, "hard")
    assert len(drawn.places) < 20 * len(drawn.members) * 0.8


def test_more_positions_only_add() -> None:
    few, many = (draw_positions(places_of(50), NAMES, number, seed=0) for number in (10, 30))
    assert all(chosen(few, name) < chosen(many, name) for name in few.members)


def test_a_draw_is_uniform_in_its_split() -> None:
    """Mean index of many small draws: 4.5 if no position is preferred (standard error 0.05)."""
    places = places_of(60)
    found = [
        i
        for seed in range(100)
        for _, i in chosen(draw_positions(places, ["all"], 20, seed), "all")
    ]
    assert sum(found) / len(found) == pytest.approx(4.5, abs=0.2)


DOCUMENT = Document("d", "s", (1, 2, 3, OPEN_ID, 5, 6), marks=(2,))
ENTROPIES = (0.0, 0.9, 2.0, 2.0, 1.0, 2.0)
ROOM = LengthLimit(max_index=4, target_tokens=1, markers=Markers((OPEN_ID,), (CLOSE_ID,)))


def noisy(document: Document, noise: Noise, given: frozenset[int] = frozenset()) -> set[int]:
    found = candidate_positions([document], [ENTROPIES], {("s", "d"): given}, noise, ROOM)
    return {place.index for place in found if place.is_noise}


def test_candidates_exclude_markers_and_contexts_without_room() -> None:
    found = candidate_positions([DOCUMENT], [ENTROPIES], {}, Noise(), ROOM)
    assert [place.index for place in found] == [1, 2, 4]
    assert [place.is_marked for place in found] == [False, True, False]
    two = candidate_positions([DOCUMENT], [ENTROPIES], {}, Noise(), replace(ROOM, target_tokens=2))
    assert [place.index for place in two] == [1, 4]
    unboxable = replace(ROOM, unpredictable_ids=frozenset({3}))
    found = candidate_positions([DOCUMENT], [ENTROPIES], {}, Noise(), unboxable)
    assert [place.index for place in found] == [1, 4]


def test_noise_is_uncertain_and_unmarked_or_marked_as_noise() -> None:
    assert noisy(DOCUMENT, Noise(min_entropy=1.0)) == {4}  # 2 is as uncertain, and marked
    assert noisy(DOCUMENT, Noise(min_entropy=0.5)) == {1, 4}
    assert noisy(replace(DOCUMENT, marks=()), Noise()) == set()
    assert noisy(DOCUMENT, Noise(field="noise"), frozenset({1, 2})) == {1, 2}
    assert "field 'hum'" in Noise(field="hum").definition
    assert "0.7 nats" in Noise(min_entropy=0.7).definition
