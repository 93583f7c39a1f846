"""How well the policy still predicts without thinking, on a batch's own positions.

    nll     mean of -log p_policy(target | context), think-open mass removed
    drift   nll less the same of the baseline, position by position

Design: the drift is of pairs, so that it does not follow what a batch happens to hold: with a frozen
baseline it is that since the run's start, with an EMA that of its memory (1 / (1 - decay) steps). The price
is one forward pass per position, without gradient, every ``learner.no_think_every_steps`` steps.
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
    """``no_think_nll`` in nats per target and, where a baseline scored, ``no_think_drift``."""
    sound = [result for result in results if result.failure is None]
    queries = [query for result in sound for query in _queries(result)]
    if not queries:
        return {}
    scores = score_continuations(language_model.model, queries, max_batch_tokens)
    nll = -fmean(score.total for score in scores)
    baseline_logprobs = [
        logprob
        for result in sound
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
