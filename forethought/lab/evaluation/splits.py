"""The splits of evaluated positions: easy, medium, hard, marked, noise and all.

    all      every position
    easy     entropy of the proxy >= 0.5 nats     RPT (arXiv 2506.08007, section 4.1): hard is a subset of
    medium   entropy >= 1.0                       medium, medium a subset of easy
    hard     entropy >= 1.5
    marked   marked in the corpus as worth predicting
    noise    positions where no thought can help

Noise cannot be identified by entropy alone: a hard answer and a random word are equally uncertain. So a
position is noise if the corpus marks it so (in a separate field), or, in a corpus with marks, if it is
uncertain and unmarked; in any other corpus no position is noise.

Design: every position has a rank, a hash of the seed, its document and its index, and a split takes its
positions of lowest rank. So each is a uniform sample of its split, the same for all models, and splits
share as many positions as possible, each evaluated once. The price: the splits are not independent
samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

THRESHOLDS = {"easy": 0.5, "medium": 1.0, "hard": 1.5}
NAMES = ("all", *THRESHOLDS, "marked", "noise")


@dataclass(frozen=True, slots=True)
class CandidatePosition:
    """A position of a document (by index), the proxy's entropy there in nats, and its labels.

    Example:
        ``CandidatePosition(document=3, document_id="heldout.jsonl#3:0", index=11, entropy=1.9,
        is_marked=True)``
    """

    document: int
    document_id: str
    index: int
    entropy: float
    is_marked: bool = False
    is_noise: bool = False


@dataclass(frozen=True, slots=True)
class DrawnPositions:
    """The evaluated positions, and for each split the indices of its members and its number of candidates.

    Example:
        ``draw_positions(places, ("all", "hard"), num_positions=512, seed=0).members["hard"]``
    """

    places: tuple[CandidatePosition, ...]
    members: dict[str, tuple[int, ...]]
    num_candidates: dict[str, int]


def draw_positions(
    places: Sequence[CandidatePosition], names: Iterable[str], num_positions: int, seed: int
) -> DrawnPositions:
    """Draw at most ``num_positions`` of every split; empty splits are omitted."""
    ranked = sorted(places, key=lambda place: _rank(place, seed))
    inside = {name: [place for place in ranked if _BELONGS[name](place)] for name in names}
    chosen = {name: found[:num_positions] for name, found in inside.items() if found}
    union = {place for found in chosen.values() for place in found}
    asked = tuple(sorted(union, key=lambda place: (place.document, place.index)))
    number = {place: i for i, place in enumerate(asked)}
    return DrawnPositions(
        asked,
        {name: tuple(sorted(number[place] for place in found)) for name, found in chosen.items()},
        {name: len(inside[name]) for name in chosen},
    )


def is_uncertain_and_unmarked(place: CandidatePosition, min_entropy: float) -> bool:
    """The definition of noise in a corpus with marks and without a noise field."""
    return not place.is_marked and place.entropy >= min_entropy


def _at_least(min_entropy: float) -> Callable[[CandidatePosition], bool]:
    return lambda place: place.entropy >= min_entropy


_BELONGS: dict[str, Callable[[CandidatePosition], bool]] = {
    "all": lambda place: True,
    **{name: _at_least(threshold) for name, threshold in THRESHOLDS.items()},
    "marked": lambda place: place.is_marked,
    "noise": lambda place: place.is_noise,
}


def _rank(place: CandidatePosition, seed: int) -> bytes:
    key = f"{seed}/{place.document_id}/{place.index}"
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
