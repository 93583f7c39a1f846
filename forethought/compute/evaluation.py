"""Measuring what thinking adds on held-out documents.

    think NLL     -E_c log p(target | context, c)      each thought on its own
    no-think NLL  -log p(target | context)             think-open mass removed
    gain          no-think NLL - think NLL             information gain of this model over itself

Design: the model is compared with itself and not with a baseline, so the figures of different arms mean
the same thing. Both NLLs are always reported: reinforcement can raise accuracy while think NLL is worse
than no-think.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from forethought.compute.logprob import Continuation, Scored, score_continuations
from forethought.compute.model import LanguageModel
from forethought.compute.sampling import Sample, SampleRequest, derive_seed, sample
from forethought.types import Document, Position, Prompting, Sampling

_BATCH_TOKENS = 16_384
_BATCH_POSITIONS = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over positions and thoughts; NLLs and gain in nats per target.

    Example:
        ``Evaluation(0.95, 0.37, 0.19, 1.51, 1.32, 7.0, 0.01)``
    """

    think_accuracy: float
    no_think_accuracy: float
    think_nll: float
    no_think_nll: float
    information_gain: float
    thought_tokens_mean: float
    truncated_share: float

    def to_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Query:
    """A document and the position in it that is asked about.

    Example:
        ``Query(document, Position(10, (42,)))``
    """

    document: Document
    position: Position


def evaluate(
    language_model: LanguageModel,
    queries: Sequence[Query],
    prompting: Prompting,
    sampling: Sampling,
    seed: int = 0,
) -> Evaluation:
    """Sample ``sampling.group_size`` thoughts at every query and score the truth after each.

    An accuracy is the share of targets whose every token was the likeliest one.
    """
    model = language_model.model
    plain = score_continuations(
        model, [_no_think(query, prompting) for query in queries], _BATCH_TOKENS
    )
    thoughts_QG = _think(model, queries, prompting, sampling, seed)
    branches = [
        _after_thought(query, prompting, thought)
        for query, thoughts_G in zip(queries, thoughts_QG, strict=True)
        for thought in thoughts_G
    ]
    thinking = score_continuations(model, branches, _BATCH_TOKENS)
    thoughts = [thought for thoughts_G in thoughts_QG for thought in thoughts_G]
    think_nll, no_think_nll = _nll(thinking), _nll(plain)
    return Evaluation(
        think_accuracy=_accuracy(thinking),
        no_think_accuracy=_accuracy(plain),
        think_nll=think_nll,
        no_think_nll=no_think_nll,
        information_gain=no_think_nll - think_nll,
        thought_tokens_mean=fmean(len(thought.token_ids_L) for thought in thoughts),
        truncated_share=fmean(not thought.stopped for thought in thoughts),
    )


def _think(
    model: object, queries: Sequence[Query], prompting: Prompting, sampling: Sampling, seed: int
) -> list[list[Sample]]:
    requests = [
        SampleRequest(
            prefix_ids=prompting.head_ids + _context(query) + prompting.bridge_ids,
            seeds_G=tuple(derive_seed(seed, q, g) for g in range(sampling.group_size)),
            max_tokens=sampling.max_thought_tokens,
            temperature=sampling.temperature,
            stop_ids=sampling.stop_ids,
        )
        for q, query in enumerate(queries)
    ]
    return [
        thoughts_G
        for start in range(0, len(requests), _BATCH_POSITIONS)
        for thoughts_G in sample(model, requests[start : start + _BATCH_POSITIONS])
    ]


def _no_think(query: Query, prompting: Prompting) -> Continuation:
    prefix = prompting.no_think_head_ids + _context(query)
    return Continuation(prefix, query.position.target_ids_H, removed_id=prompting.open_id)


def _after_thought(query: Query, prompting: Prompting, thought: Sample) -> Continuation:
    close = prompting.close_ids[1:] if thought.stopped else prompting.close_ids
    prefix = prompting.head_ids + _context(query) + prompting.bridge_ids
    return Continuation(prefix + thought.token_ids_L + close, query.position.target_ids_H)


def _context(query: Query) -> tuple[int, ...]:
    return query.document.token_ids_N[: query.position.index]


def _nll(scored: Sequence[Scored]) -> float:
    return -fmean(result.total for result in scored)


def _accuracy(scored: Sequence[Scored]) -> float:
    return fmean(all(result.greedy_H) for result in scored)
