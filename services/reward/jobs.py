"""The jobs of the compute thread, and how a batch of them is computed.

Design: jobs of one kind are computed together, whichever client sent them; a job that cannot be computed
yields its error, found before any forward pass. The kinds of a batch run one after the other and each holds
its model separately, so two kinds may see two versions; every result names the version it used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from forethought.compute.entropy import EntropyQuery
from forethought.compute.logprob import Continuation, ContinuationScore
from forethought.errors import ForethoughtError
from forethought.estimators import Estimator
from forethought.objectives import Objective
from forethought.scatter import compute_flat
from forethought.types import WeightManifest
from services.reward.groups import GroupLikelihoods, GroupOutcome, GroupQuery
from services.reward.scoring import Scorer, rewards_of


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Groups to reward by an objective.

    Example:
        ``ScoreJob((query,), objective, estimator)``
    """

    queries: tuple[GroupQuery, ...]
    objective: Objective
    estimator: Estimator


@dataclass(frozen=True, slots=True)
class GroupPartJob:
    """Some thoughts of a group that is too large for one batch; it is rewarded as a whole afterwards.

    Example:
        ``GroupPartJob(replace(query, thoughts_G=query.thoughts_G[:8]))``
    """

    part: GroupQuery


@dataclass(frozen=True, slots=True)
class LogprobsJob:
    """Continuations to score by one model, "policy" or "baseline".

    Example:
        ``LogprobsJob("policy", (Continuation((1, 5), (9,)),))``
    """

    model: str
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True)
class EntropyJob:
    """Tokens whose prediction entropies are requested of the policy.

    Example:
        ``EntropyJob(EntropyQuery((5, 17, 9), top_k=16, renormalise=False))``
    """

    query: EntropyQuery


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group's likelihoods with the objective's rewards and the estimator's advantages. [G] each.

    Example:
        ``ScoredGroup(likelihoods, (0.9, -0.2), (1.1, -1.1))``
    """

    likelihoods: GroupLikelihoods
    rewards_G: tuple[float, ...]
    advantages_G: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LogprobsResult:
    """Log-probs of every continuation, in order, and the weights that computed them.

    Example:
        ``LogprobsResult((ContinuationScore((-0.2,), (True,)),), manifest)``
    """

    scored: tuple[ContinuationScore, ...]
    manifest: WeightManifest


@dataclass(frozen=True, slots=True)
class EntropyResult:
    """In nats, of predicting tokens 1 to N-1, and the weights that computed them.

    Example:
        ``EntropyResult((1.7, 0.2), manifest)``
    """

    entropies: tuple[float, ...]
    manifest: WeightManifest


Job: TypeAlias = ScoreJob | GroupPartJob | LogprobsJob | EntropyJob
Result: TypeAlias = (
    tuple[ScoredGroup | ForethoughtError, ...]
    | tuple[GroupOutcome]
    | LogprobsResult
    | EntropyResult
    | ForethoughtError
)
"""A job's result, or its error."""


def run_jobs(scorer: Scorer, jobs: Sequence[Job]) -> list[Result]:
    """Compute a batch; one result per job, in order. Blocking: call it through ``Scorer.run``.

    Raises:
        NotReady: a requested model has no weights yet.
    """
    score = {i: job for i, job in enumerate(jobs) if isinstance(job, ScoreJob)}
    parts = {i: job for i, job in enumerate(jobs) if isinstance(job, GroupPartJob)}
    entropy = {i: job for i, job in enumerate(jobs) if isinstance(job, EntropyJob)}
    results: dict[int, Result] = {}
    if score:
        results |= zip(score, _score(scorer, list(score.values())), strict=True)
    if parts:
        outcomes = scorer.score_groups([job.part for job in parts.values()])
        results |= zip(parts, ((outcome,) for outcome in outcomes), strict=True)
    if entropy:
        results |= zip(entropy, _entropies(scorer, list(entropy.values())), strict=True)
    logprobs = {i: job for i, job in enumerate(jobs) if isinstance(job, LogprobsJob)}
    for model in {job.model for job in logprobs.values()}:
        asked = {i: job for i, job in logprobs.items() if job.model == model}
        results |= zip(asked, _logprobs(scorer, model, list(asked.values())), strict=True)
    return [results[index] for index in range(len(jobs))]


def _score(scorer: Scorer, jobs: list[ScoreJob]) -> list[Result]:
    outcomes = compute_flat([job.queries for job in jobs], scorer.score_groups)
    return [
        tuple(
            reward(job.objective, job.estimator, query, outcome, scorer.decode)
            for query, outcome in zip(job.queries, outcomes_of_job, strict=True)
        )
        for job, outcomes_of_job in zip(jobs, outcomes, strict=True)
    ]


def reward(
    objective: Objective,
    estimator: Estimator,
    query: GroupQuery,
    outcome: GroupOutcome,
    decode: Callable[[Sequence[int]], str],
) -> ScoredGroup | ForethoughtError:
    """Rewards and advantages of a whole group from its likelihoods; their error if there is one."""
    if isinstance(outcome, ForethoughtError):
        return outcome
    try:
        rewards_G = rewards_of(objective, query, outcome, decode)
    except ForethoughtError as error:
        return error
    (advantages_G,) = estimator.advantages([rewards_G])
    return ScoredGroup(outcome, rewards_G, tuple(advantages_G))


def _logprobs(scorer: Scorer, model: str, jobs: list[LogprobsJob]) -> list[Result]:
    outcomes, manifest = scorer.score_continuations(model, [job.continuations for job in jobs])
    results: list[Result] = []
    for outcome in outcomes:
        if isinstance(outcome, ForethoughtError):
            results.append(outcome)
        else:
            numbers = [logprob for scored in outcome for logprob in scored.logprobs_H]
            results.append(_finite(numbers, LogprobsResult(outcome, manifest), manifest))
    return results


def _entropies(scorer: Scorer, jobs: list[EntropyJob]) -> list[Result]:
    outcomes, manifest = scorer.entropies([job.query for job in jobs])
    return [
        outcome
        if isinstance(outcome, ForethoughtError)
        else _finite(outcome, EntropyResult(outcome, manifest), manifest)
        for outcome in outcomes
    ]


def _finite(numbers: Sequence[float], result: Result, manifest: WeightManifest) -> Result:
    if all(map(math.isfinite, numbers)):
        return result
    return ForethoughtError(
        f"{manifest.model} version {manifest.version} gave a number that is not finite; expected "
        f"finite ones: its weights have diverged or overflow in {manifest.dtype}"
    )
