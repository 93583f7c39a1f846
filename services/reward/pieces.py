"""Requests in pieces that fit a batch, and their results put together again.

Design: small groups are packed together; the thoughts of a large one are spread over several pieces, so
that other requests take turns with it and its caller can leave between two of them. Its likelihoods have
to be of one pair of versions, so they are computed again if weights changed in between, and it is rewarded
as a whole, on the compute thread. The price is one more pass over its context for every piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

from forethought.errors import ForethoughtError, NotReady
from forethought.estimators import Estimator
from forethought.objectives import Objective
from services.reward.batching import Batcher, Piece
from services.reward.groups import GroupLikelihoods, GroupOutcome, GroupQuery, joined
from services.reward.jobs import GroupPartJob, Job, Result, ScoredGroup, ScoreJob, reward
from services.reward.scoring import Scorer

_Scored: TypeAlias = tuple[ScoredGroup | ForethoughtError, ...]

MAX_FLIPS = 3
"""Changes of weights during one request of several pieces, after which it is given up."""


async def results_of(batcher: Batcher[Job, Result], pieces: Sequence[Piece[Job]]) -> list[Result]:
    """The results of all pieces, in order; the first error is raised."""
    results = await batcher.submit(pieces)
    for result in results:
        if isinstance(result, ForethoughtError):
            raise result
    return results


def runs(costs: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Runs of consecutive indices, each within ``max_tokens``; a larger index is a run by itself."""
    found: list[list[int]] = []
    left = 0
    for index, cost in enumerate(costs):
        left -= cost
        if not found or left < 0:
            found.append([])
            left = max_tokens - cost
        found[-1].append(index)
    return found


class GroupScoring:
    """Rewards of the groups of one request.

    Example:
        ``await GroupScoring(scorer, batcher, 16_384).score(queries, objective, estimator)``
    """

    def __init__(
        self, scorer: Scorer, batcher: Batcher[Job, Result], max_batch_tokens: int
    ) -> None:
        self._scorer, self._batcher, self._max_tokens = scorer, batcher, max_batch_tokens

    async def score(
        self, queries: Sequence[GroupQuery], objective: Objective, estimator: Estimator
    ) -> list[ScoredGroup | ForethoughtError]:
        """One outcome per group, in order.

        Raises:
            Overloaded: too many tokens are waiting already.
            NotReady: no weights yet, or they changed too often.
        """
        shares = self._scorer.shares
        costs = [query.num_tokens(shares) for query in queries]
        if queries and (num_tokens := sum(costs)) <= self._max_tokens:
            job = ScoreJob(tuple(queries), objective, estimator)
            [result] = await results_of(self._batcher, [Piece(job, num_tokens)])
            return list(cast(_Scored, result))
        small = [index for index, cost in enumerate(costs) if cost <= self._max_tokens]
        large = [index for index, cost in enumerate(costs) if cost > self._max_tokens]
        packed: list[Piece[Job]] = [
            Piece(
                ScoreJob(tuple(queries[small[i]] for i in run), objective, estimator),
                sum(costs[small[i]] for i in run),
            )
            for run in runs([costs[index] for index in small], self._max_tokens)
        ]
        parts = {index: self._parts(queries[index], shares) for index in large}
        pieces = [*packed, *(part for index in large for part in parts[index])]
        results = iter(await results_of(self._batcher, pieces))
        outcomes = [one for _ in packed for one in cast(_Scored, next(results))]
        scored = dict(zip(small, outcomes, strict=True))
        for index in large:
            of_parts = [cast("tuple[GroupOutcome]", next(results))[0] for _ in parts[index]]
            likelihoods = await self._whole(parts[index], of_parts)
            scored[index] = await self._scorer.run(
                reward, objective, estimator, queries[index], likelihoods, self._scorer.decode
            )
        return [scored[index] for index in range(len(queries))]

    def _parts(self, query: GroupQuery, shares: bool) -> list[Piece[Job]]:
        parts = query.parts(self._max_tokens, shares)
        return [Piece(GroupPartJob(part), part.num_tokens(shares)) for part in parts]

    async def _whole(
        self, parts: Sequence[Piece[Job]], outcomes: Sequence[GroupOutcome]
    ) -> GroupOutcome:
        """The likelihoods of a group from those of its parts, computed again until of one version."""
        for num_flips in range(1, MAX_FLIPS + 1):
            found = [outcome for outcome in outcomes if isinstance(outcome, GroupLikelihoods)]
            if len(found) < len(outcomes):
                return next(one for one in outcomes if isinstance(one, ForethoughtError))
            if len({one.versions for one in found}) == 1:
                return joined(found)
            if num_flips < MAX_FLIPS:
                results = await results_of(self._batcher, parts)
                outcomes = [cast("tuple[GroupOutcome]", result)[0] for result in results]
        raise weights_changed("thoughts per item")


def weights_changed(what: str) -> NotReady:
    """The error of a request whose pieces were never of one version."""
    return NotReady(
        f"weights changed {MAX_FLIPS} times while the pieces of the request were computed; expected "
        f"one version for all of them; send fewer {what}, or retry"
    )
