"""Which positions are asked about: easy, medium, hard, marked, noise and all.

    all      every position
    easy     entropy of the proxy >= 0.5 nats     RPT (arXiv 2506.08007, section 4.1): hard is a part of
    medium   entropy >= 1.0                       medium is a part of easy
    hard     entropy >= 1.5
    marked   where the corpus says that predicting is worth it
    noise    where no thought can help

Noise cannot be known from entropy alone: a hard answer and a random word are equally uncertain. So a
position is noise where the corpus says so (a field of its own), or, in a corpus with marks, where it is
uncertain and not marked; in any other corpus nothing is called noise.

Design: every position has a rank that is a hash of the seed, its document and its index, and a split takes
the positions of lowest rank in it. Each is a uniform sample of its split, the same for all models, and the
splits share as many positions as they can, so that each is asked about once. The price: splits are not
independent samples of one another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

THRESHOLDS = {"easy": 0.5, "medium": 1.0, "hard": 1.5}
NAMES = ("all", *THRESHOLDS, "marked", "noise")


@dataclass(frozen=True, slots=True)
class CandidatePosition:
    """A position of a document (by number), the proxy's entropy there in nats, and what is known of it.

    Example:
        ``CandidatePosition(document=3, document_id="heldout.jsonl#3:0", index=11, entropy=1.9, is_marked=True)``
    """

    document: int
    document_id: str
    index: int
    entropy: float
    is_marked: bool = False
    is_noise: bool = False


@dataclass(frozen=True, slots=True)
class DrawnPositions:
    """The places that are asked about, and for each split which of them, by number, and of how many.

    Example:
        ``draw_positions(places, ("all", "hard"), num_positions=512, seed=0).members["hard"]``
    """

    places: tuple[CandidatePosition, ...]
    members: dict[str, tuple[int, ...]]
    num_candidates: dict[str, int]


def draw_positions(
    places: Sequence[CandidatePosition], names: Iterable[str], num_positions: int, seed: int
) -> DrawnPositions:
    """At most ``num_positions`` of every split; splits without any position are left out."""
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
    """What noise is in a corpus with marks and no field for it."""
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
