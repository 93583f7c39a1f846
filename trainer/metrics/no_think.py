"""How well the policy still predicts without thinking, on a batch's own positions.

    nll     mean of -log p_policy(target | context), think-open mass removed
    drift   nll minus the baseline's, paired by position

Design: the drift is paired, so that it does not depend on which positions the batch contains: with a frozen
baseline it is the drift since the run's start, with an EMA that over its horizon (1 / (1 - decay) steps).
The price is one forward pass per position, without gradient, every ``learner.no_think_every_steps`` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from forethought.compute.logprob import Continuation, score_continuations
from forethought.compute.model import LanguageModel
from forethought.types import ScoredRollout


def no_think_metrics(
    language_model: LanguageModel, results: Sequence[ScoredRollout], max_batch_tokens: int
) -> dict[str, float]:
    """``no_think_nll`` in nats per target and, if a baseline was scored, ``no_think_drift``."""
    succeeded = [result for result in results if result.failure is None]
    queries = [query for result in succeeded for query in _queries(result)]
    if not queries:
        return {}
    scores = score_continuations(language_model.model, queries, max_batch_tokens)
    nll = -fmean(score.total for score in scores)
    baseline_logprobs = [
        logprob
        for result in succeeded
        if "baseline" in result.rollout.task.models
        for logprob in result.baseline_logprobs_K
    ]
    if len(baseline_logprobs) < len(queries):
        return {"no_think_nll": nll}
    return {"no_think_nll": nll, "no_think_drift": nll + fmean(baseline_logprobs)}


def _queries(result: ScoredRollout) -> list[Continuation]:
    task = result.rollout.task
    trunk_ids = task.document.token_ids_N
    return [
        Continuation.without_thought(task.prompting, trunk_ids[: p.index], p.target_ids_H)
        for p in task.positions_K
    ]
