"""Branches that the same weights have scored before."""

from __future__ import annotations

from forethought.compute.logprob import Continuation
from services.reward.scored_branches import ScoredBranches

A = Continuation((1, 2), (3,))
BRANCHES = [
    A,
    Continuation((1,), (2, 3)),  # the same tokens
    Continuation((1, 2), (3,), removed_id=9),
    Continuation((1, 2), (4,)),
]


class Counting:
    """Scores every branch with its number in the order of scoring."""

    def __init__(self) -> None:
        self.scored: list[Continuation] = []

    def __call__(self, branches: list[Continuation]) -> list[float]:
        self.scored += branches
        return [float(self.scored.index(branch)) for branch in branches]


def test_each_branch_is_scored_once_per_version() -> None:
    kept, score = ScoredBranches(10), Counting()
    assert kept.totals(1, [*BRANCHES, A], score) == [0, 1, 2, 3, 0]
    assert kept.totals(1, [BRANCHES[2], A], score) == [2, 0]
    assert score.scored == BRANCHES
    kept.totals(2, [A], score)
    assert score.scored == [*BRANCHES, A]


def test_only_the_newest_are_kept() -> None:
    kept, score = ScoredBranches(2), Counting()
    assert kept.totals(1, BRANCHES, score) == [0, 1, 2, 3]
    kept.totals(1, BRANCHES[2:], score)
    assert score.scored == BRANCHES
    kept.totals(1, [A], score)
    assert score.scored == [*BRANCHES, A]
