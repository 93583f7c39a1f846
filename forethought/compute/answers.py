"""Evaluate the information gain of thinking on held-out documents.

    think NLL     -E_c log p(target | context, c)        each thought separately
    marginal NLL  -log E_c p(target | context, c)        the G thoughts as a mixture (Rao-Blackwell)
    no-think NLL  -log p(target | context)               think-open mass removed
    gain          no-think NLL - think NLL               information gain of this model over itself

Design: the model is compared with itself and not with a baseline, so results of different arms are
comparable. All three NLLs are always reported: reinforcement can raise accuracy while think NLL is worse
than no-think, and the gap between think and marginal NLL reflects confidence, not competence. By Jensen's
inequality think NLL is at least marginal NLL, at every position. The raw measurements of each position are
kept (:class:`Answer`), so that means, intervals and comparisons are computed elsewhere; the price is that
every sampled thought stays in memory until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev

from forethought.compute.decode_batches import sample_within, tokens_within
from forethought.compute.finite import check_finite
from forethought.compute.logprob import Continuation, ContinuationScore, score_continuations
from forethought.compute.model import LanguageModel
from forethought.compute.sampling import Sample, SampleRequest, derive_seed
from forethought.errors import InvalidInput
from forethought.types import Document, Position, Prompting, Sampling

_BATCH_TOKENS = 16_384
_BATCH_POSITIONS = 64
MAX_CACHE_BYTES = 4_000_000_000
"""Keys and values of one decode batch: 17,000 tokens of a Qwen3 of 1.7B parameters in float32."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over positions and thoughts; NLLs and gain in nats per target.

    Example:
        ``Evaluation(0.95, 0.37, 0.19, 1.51, 1.32, 7.0, 0.01, 0.12)``
    """

    think_accuracy: float
    no_think_accuracy: float
    think_nll: float
    no_think_nll: float
    information_gain: float
    thought_tokens_mean: float
    truncated_share: float
    marginal_nll: float

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Query:
    """A document and one position in it to evaluate.

    Example:
        ``Query(document, Position(10, (42,)))``
    """

    document: Document
    position: Position

    @property
    def context_ids(self) -> tuple[int, ...]:
        """What precedes the position."""
        return self.document.token_ids_N[: self.position.index]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The H tokens that follow. Shape [H]."""
        return self.position.target_ids_H


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's output at one position: G thoughts, and the target's scores after each and without one.

    Example:
        ``Answer(plain, thoughts_G, scored_G).think_nll``
    """

    plain: ContinuationScore
    thoughts_G: tuple[Sample, ...]
    scored_G: tuple[ContinuationScore, ...]

    @property
    def think_nll(self) -> float:
        """-E_c log p(target | context, c), nats."""
        return -fmean(scored.total for scored in self.scored_G)

    @property
    def marginal_nll(self) -> float:
        """-log E_c p(target | context, c), nats."""
        totals = [scored.total for scored in self.scored_G]
        largest = max(totals)
        return -largest - math.log(fmean(math.exp(total - largest) for total in totals))

    @property
    def no_think_nll(self) -> float:
        """-log p(target | context), nats."""
        return -self.plain.total

    @property
    def information_gain(self) -> float:
        """No-think NLL minus think NLL, nats."""
        return self.no_think_nll - self.think_nll

    @property
    def logprob_std(self) -> float:
        """Standard deviation over the thoughts of log p(target | context, c), nats; 0 for one thought."""
        return pstdev(scored.total for scored in self.scored_G)

    @property
    def num_right(self) -> int:
        """The number of thoughts after which every target token was the likeliest."""
        return sum(all(scored.greedy_H) for scored in self.scored_G)

    @property
    def is_right_without(self) -> bool:
        """Whether every target token is the likeliest without a thought."""
        return all(self.plain.greedy_H)


def evaluate(
    language_model: LanguageModel,
    queries: Sequence[Query],
    prompting: Prompting,
    sampling: Sampling,
    seed: int = 0,
) -> Evaluation:
    """Sample ``sampling.group_size`` thoughts at every query and score the target after each.

    Accuracy is the share of targets of which every token was the likeliest.

    Raises:
        InvalidInput: a log-prob is not finite.
    """
    answers = answer_queries(language_model, queries, prompting, sampling, seed)
    thoughts = [thought for answer in answers for thought in answer.thoughts_G]
    think_nll = fmean(answer.think_nll for answer in answers)
    no_think_nll = fmean(answer.no_think_nll for answer in answers)
    return Evaluation(
        think_accuracy=fmean(answer.num_right / len(answer.scored_G) for answer in answers),
        no_think_accuracy=fmean(answer.is_right_without for answer in answers),
        think_nll=think_nll,
        no_think_nll=no_think_nll,
        information_gain=no_think_nll - think_nll,
        thought_tokens_mean=fmean(len(thought_ids(thought)) for thought in thoughts),
        truncated_share=fmean(not thought.stopped for thought in thoughts),
        marginal_nll=fmean(answer.marginal_nll for answer in answers),
    )


def answer_queries(
    language_model: LanguageModel,
    queries: Sequence[Query],
    prompting: Prompting,
    sampling: Sampling,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
    max_cache_bytes: int = MAX_CACHE_BYTES,
) -> list[Answer]:
    """The model's answer to every query, in order; ``report(num_done)`` is called after each batch.

    Decode batches hold up to 64 queries, those of a document together, and ``max_cache_bytes`` of keys and
    values: a document once, and every thought with its maximum length.

    A thought's random numbers depend on the seed, the query's index and the thought's index, not on the
    model: models evaluated on the same queries and seed form paired samples.

    Raises:
        InvalidInput: a log-prob is not finite, or the model cannot be sampled here, or not at this length.
    """
    _check_sampled(language_model, queries, prompting, sampling)
    model, answers = language_model.model, dict[int, Answer]()
    max_tokens = tokens_within(model, max_cache_bytes)
    order = _by_document(queries)
    for start in range(0, len(queries), _BATCH_POSITIONS):
        batch = order[start : start + _BATCH_POSITIONS]
        requests = [_request(queries[q], q, prompting, sampling, seed) for q in batch]
        thoughts_QG = sample_within(model, requests, max_tokens)
        scored = _scored(model, [queries[q] for q in batch], thoughts_QG, prompting)
        answers |= zip(batch, scored, strict=True)
        if report:
            report(len(answers))
    return [answers[q] for q in range(len(queries))]


def _by_document(queries: Sequence[Query]) -> list[int]:
    """The indices of all queries, those of a document together, because they share it."""
    firsts: dict[str, int] = {}
    for q, query in enumerate(queries):
        firsts.setdefault(query.document.document_id, q)
    return sorted(range(len(queries)), key=lambda q: (firsts[queries[q].document.document_id], q))


def thought_ids(thought: Sample) -> tuple[int, ...]:
    """The thought with its sampled close marker, if any, without a prediction after it."""
    return thought.token_ids_L[: len(thought.token_ids_L) - thought.num_prediction_tokens]


def _check_sampled(
    language_model: LanguageModel,
    queries: Sequence[Query],
    prompting: Prompting,
    sampling: Sampling,
) -> None:
    longest = max((len(prompting.thinking_prefix(q.context_ids)) for q in queries), default=0)
    num_tokens = longest + sampling.max_response_tokens
    if reason := language_model.consistency.sampling_fault(num_tokens):
        raise InvalidInput(reason)


def _request(
    query: Query, index: int, prompting: Prompting, sampling: Sampling, seed: int
) -> SampleRequest:
    return SampleRequest(
        prefix_ids=prompting.thinking_prefix(query.context_ids),
        seeds_G=tuple(derive_seed(seed, index, g) for g in range(sampling.group_size)),
        max_tokens=sampling.max_thought_tokens,
        temperature=sampling.temperature,
        stop_ids=sampling.stop_ids,
        prediction_tokens=sampling.prediction_tokens,
        prediction_stop_ids=sampling.prediction_stop_ids,
        stop_sequences=sampling.stop_sequences,
    )


def _scored(
    model: object, queries: Sequence[Query], thoughts_QG: list[list[Sample]], prompting: Prompting
) -> list[Answer]:
    """Score each distinct continuation once: a converged model repeats the same thought many times."""
    plain = [_no_think(query, prompting) for query in queries]
    branches_QG = [
        [_after_thought(query, prompting, thought) for thought in thoughts_G]
        for query, thoughts_G in zip(queries, thoughts_QG, strict=True)
    ]
    different = list(dict.fromkeys([*plain, *(b for of_query in branches_QG for b in of_query)]))
    scores = score_continuations(model, different, _BATCH_TOKENS)
    check_finite(model, (score.total for score in scores), "a log-prob")
    scored = dict(zip(different, scores, strict=True))
    return [
        Answer(scored[plain[q]], tuple(thoughts_G), tuple(scored[b] for b in branches_QG[q]))
        for q, thoughts_G in enumerate(thoughts_QG)
    ]


def _no_think(query: Query, prompting: Prompting) -> Continuation:
    return Continuation.without_thought(prompting, query.context_ids, query.target_ids)


def _after_thought(query: Query, prompting: Prompting, thought: Sample) -> Continuation:
    return Continuation.after_thought(
        prompting,
        query.context_ids,
        thought_ids(thought),
        thought.stopped,
        query.target_ids,
    )
