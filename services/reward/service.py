"""The transport-independent core: HTTP and gRPC call these methods and only translate.

Design: methods take plain JSON values (dicts, lists or tuples, strings, numbers), validate them here, and
return typed dicts, which HTTP writes as is and gRPC reads by key. Parsing (validation, tokenisation) runs
on the event loop when the request is small and in a helper thread when it is large; computing is a job in
the batcher's queue. The price is that a request is tokenised by the tokenizer served when it arrives: if
weights with a *different* tokenizer replace it before the job runs, ids of the old one are scored. All
weights of one run share one tokenizer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

from forethought import estimators
from forethought.compute.entropy import EntropyQuery
from forethought.compute.logprob import Continuation
from forethought.errors import ForethoughtError, InvalidInput, NotReady, TooLarge
from forethought.objectives import Objective
from forethought.scatter import compute_valid
from services.reward import match
from services.reward.batching import Batcher, Piece
from services.reward.groups import GroupQuery
from services.reward.jobs import (
    EntropyJob,
    EntropyResult,
    Job,
    LogprobsJob,
    LogprobsResult,
    Result,
    ScoredGroup,
    ScoreJob,
    run_jobs,
)
from services.reward.reading import (
    check_item,
    item_id,
    kind_of,
    num_units,
    read_choice,
    read_continuation,
    read_flag,
    read_ids,
    read_item,
    read_items,
    read_positive,
    read_text,
    shown,
    text_or_ids,
)
from services.reward.replies import (
    EntropyReply,
    ItemError,
    ItemMatch,
    LogprobsReply,
    MatchReply,
    ModelsReply,
    ScoreReply,
    failure,
    model_answer,
    score_answer,
)
from services.reward.scoring import Scorer
from services.reward.tokens import TokenizerFacts

P = ParamSpec("P")
R = TypeVar("R")

_MAX_FLIPS = 3  # weight swaps during one request of several pieces
_LARGE_UNITS = 32_768  # characters or ids; parsing fewer takes about a millisecond


@dataclass(frozen=True, slots=True)
class Limits:
    """Load limits of one service, in tokens.

    ``max_batch_tokens`` bounds one batch. ``max_request_tokens`` bounds all branches of one request: a
    short body could otherwise demand a long context times a million thoughts. ``max_waiting_tokens``
    bounds all admitted requests together. ``one_at_a_time`` never puts two jobs in a batch.

    Example:
        ``Limits(max_batch_tokens=16_384, max_waiting_tokens=1 << 20)``
    """

    max_batch_tokens: int
    max_waiting_tokens: int = 1 << 20
    max_request_tokens: int = 1 << 22
    one_at_a_time: bool = False


class RewardService:
    """Scores, log-probs, matches and entropies for any number of concurrent callers.

    A request raises InvalidInput (it is invalid), NotReady (no weights yet), Overloaded (too many tokens
    are queued) or ForethoughtError (a result is not finite); cancelling a call removes its work from the
    queue. All methods run on one event loop.

    Example:
        ``answer = await service.score("rlp", [{"context": "3+4=", "target": "7", "thoughts": ["a"]}])``
    """

    def __init__(
        self,
        scorer: Scorer,
        objectives: Mapping[str, Objective],
        *,
        think_open: str,
        think_close: str,
        limits: Limits,
    ) -> None:
        self._scorer = scorer
        self._objectives = dict(objectives)
        self._estimators = {name: estimators.load(o.estimator) for name, o in objectives.items()}
        self._markers = (think_open, think_close)
        self._limits = limits
        self._facts: TokenizerFacts | None = None
        self.batcher: Batcher[Job, Result] = Batcher(
            self._compute,
            limits.max_batch_tokens,
            limits.max_waiting_tokens,
            limits.one_at_a_time,
        )

    async def score(
        self, objective: Any, items: Any, *, num_body_bytes: int | None = None
    ) -> ScoreReply:
        """Rewards and advantages of every item's thoughts; an invalid item is an error inside the reply.

        An item is ``{"id"?, "context" | "context_ids", "target" | "target_ids", "thoughts": [text or
        ids]}``, or a typed :class:`ScoreItem`. ``num_body_bytes`` is the size of the body, if known.
        """
        name = self._known_objective(objective)
        raw = read_items(items)
        size = num_units(raw) if num_body_bytes is None else num_body_bytes
        queries = await self._read(size, self._read_queries, name, raw)
        valid = [query for query in queries if isinstance(query, GroupQuery)]
        costs = [query.num_tokens for query in valid]
        self._check_size(sum(costs))
        scored = await self._score(name, valid, costs)
        errors = [query if isinstance(query, ForethoughtError) else None for query in queries]
        outcomes = compute_valid(queries, errors, lambda _: scored)
        return {"items": [score_answer(i, o) for i, o in zip(raw, outcomes, strict=True)]}

    async def logprobs(
        self, model: Any, continuations: Any, *, prefix: Any = None, prefix_ids: Any = None
    ) -> LogprobsReply:
        """Teacher-forced log-probs of every continuation (text or ids) after one prefix.

        Over the whole vocabulary, at temperature 1, no token masked. Texts are tokenised separately.
        ``model`` is "policy" or "baseline".
        """
        name = read_choice(model, "model", ("policy", "baseline"))
        item = {"prefix": prefix, "prefix_ids": prefix_ids}
        size = num_units(item) + num_units(continuations)
        queries = await self._read(size, self._read_continuations, item, continuations)
        costs = [len(q.prefix_ids) + len(q.continuation_ids) for q in queries]
        self._check_size(sum(costs))
        pieces: list[Piece[Job]] = [
            Piece(LogprobsJob(name, tuple(queries[i] for i in part)), sum(costs[i] for i in part))
            for part in _parts(costs, self._limits.max_batch_tokens)
        ]
        results = await self._of_one_version(pieces)
        scored = [scored for result in results for scored in result.scored]
        return {
            "model": name,
            "epoch": results[0].manifest.epoch,
            "version": results[0].manifest.version,
            "continuations": [
                {
                    "token_ids": query.continuation_ids,
                    "logprobs": one.logprobs_H,
                    "logprob": one.total,
                }
                for query, one in zip(queries, scored, strict=True)
            ],
        }

    async def match(self, kind: Any, items: Any) -> MatchReply:
        """Whether every item's prediction is correct; see :mod:`services.reward.match`. Needs no model.

        An item is ``{"id"?, "prediction", "truth", "token_bytes"?}``. Kind ``byte_prefix`` without
        ``token_bytes`` takes the truth's token boundaries from the served tokenizer.
        """
        name = read_choice(kind, "kind", match.KINDS)
        raw = read_items(items)
        return {"items": await self._read(num_units(raw), self._matches, name, raw)}

    async def entropy(
        self, *, text: Any = None, token_ids: Any = None, top_k: Any = 16, renormalise: Any = False
    ) -> EntropyReply:
        """Entropy in nats of the policy's prediction of every token but the first from all before it.

        Over the ``top_k`` most likely tokens; ``renormalise`` makes their probabilities sum to 1.
        """
        k, flag = read_positive(top_k, "top_k"), read_flag(renormalise, "renormalise")
        item = {"text": text, "token_ids": token_ids}
        found = await self._read(
            num_units(item),
            lambda: text_or_ids(item, "text", self._tokenizer().tokenizer, "token_ids"),
        )
        if len(found) < 2:
            raise InvalidInput(
                "got 1 token; expected at least 2, because an entropy is that of predicting a token "
                "from those before it"
            )
        self._check_size(len(found))
        pieces: list[Piece[Job]] = [Piece(EntropyJob(EntropyQuery(found, k, flag)), len(found))]
        (result,) = [cast(EntropyResult, r) for r in await self._results(pieces)]
        return {
            "epoch": result.manifest.epoch,
            "version": result.manifest.version,
            "token_ids": found,
            "first_position": 1,
            "entropies": result.entropies,
        }

    def models(self) -> ModelsReply:
        """Policy and baseline with their versions, and the objectives. Does not block.

        Raises:
            NotReady: no policy weights yet.
        """
        baseline = self._scorer.baseline
        return {
            "policy": model_answer(self._scorer.policy),
            "baseline": model_answer(baseline) if baseline and baseline.is_ready else None,
            "objectives": sorted(self._objectives),
        }

    async def close(self) -> None:
        """Fail queued requests with NotReady; the scorer owns the compute thread and stops it."""
        await self.batcher.close()

    async def _compute(self, jobs: list[Job]) -> list[Result]:
        return await self._scorer.run(run_jobs, self._scorer, jobs)

    async def _read(
        self, size: int, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function that parses ``size`` units: in a helper thread if they are many."""
        if size < _LARGE_UNITS:
            return function(*args, **kwargs)
        return await asyncio.to_thread(function, *args, **kwargs)

    def _tokenizer(self) -> TokenizerFacts:
        tokenizer = self._scorer.policy.now.language_model.tokenizer
        facts = self._facts
        if facts is None or facts.tokenizer is not tokenizer:
            facts = self._facts = TokenizerFacts(tokenizer, *self._markers)
        return facts

    def _known_objective(self, name: Any) -> str:
        if not isinstance(name, str):
            raise InvalidInput(
                f'objective is {kind_of(name)}; expected the name of an objective, such as "rlp"'
            )
        if name not in self._objectives:
            raise InvalidInput(
                f"got objective {shown(name)}; expected one that was loaded at start: "
                f"{', '.join(sorted(self._objectives))}; to use another, start the service with it"
            )
        return name

    def _read_queries(self, name: str, items: list[Any]) -> list[GroupQuery | ForethoughtError]:
        facts = self._tokenizer()
        prompting = facts.prompting(self._objectives[name])
        min_size = self._estimators[name].min_group_size

        def read(item: Any) -> GroupQuery | ForethoughtError:
            try:
                query = read_item(item, facts.tokenizer, prompting)
                query = facts.graded(query, self._objectives[name])
            except ForethoughtError as error:
                return error
            if len(query.thoughts_G) >= min_size:
                return query
            return InvalidInput(
                f"thoughts holds {len(query.thoughts_G)}; expected at least {min_size}, because the "
                f"advantage of objective {name} compares thoughts of a group; send more thoughts"
            )

        return [read(item) for item in items]

    def _read_continuations(self, item: dict[str, Any], continuations: Any) -> list[Continuation]:
        tokenizer = self._tokenizer().tokenizer
        prefix_ids = text_or_ids(item, "prefix", tokenizer)
        if not isinstance(continuations, list | tuple) or not continuations:
            raise InvalidInput(
                f"continuations is {kind_of(continuations)}; expected a list of at least one"
            )
        queries = []
        for index, value in enumerate(continuations):
            found = read_continuation(value, f"continuations[{index}]", tokenizer)
            if not found:
                raise InvalidInput(
                    f"continuations[{index}] is empty; expected at least one token each"
                )
            queries.append(Continuation(prefix_ids, found))
        return queries

    def _check_size(self, num_tokens: int) -> None:
        if num_tokens > self._limits.max_request_tokens:
            raise TooLarge(
                f"the request has {num_tokens} tokens over all its branches; expected at most "
                f"{self._limits.max_request_tokens}; split it into several requests"
            )

    async def _score(
        self, name: str, queries: list[GroupQuery], costs: list[int]
    ) -> list[ScoredGroup | ForethoughtError]:
        objective, estimator = self._objectives[name], self._estimators[name]
        pieces: list[Piece[Job]] = [
            Piece(
                ScoreJob(tuple(queries[i] for i in part), objective, estimator),
                sum(costs[i] for i in part),
            )
            for part in _parts(costs, self._limits.max_batch_tokens)
        ]
        results = await self._results(pieces)
        return [one for result in results for one in cast("tuple[ScoredGroup, ...]", result)]

    async def _results(self, pieces: list[Piece[Job]]) -> list[Result]:
        results = await self.batcher.submit(pieces)
        for result in results:
            if isinstance(result, ForethoughtError):
                raise result
        return results

    async def _of_one_version(self, pieces: list[Piece[Job]]) -> list[LogprobsResult]:
        """The results of all pieces, recomputed if weights changed between two of them."""
        for _ in range(_MAX_FLIPS):
            results = [cast(LogprobsResult, result) for result in await self._results(pieces)]
            if len({result.manifest.order for result in results}) == 1:
                return results
        raise NotReady(
            f"weights changed {_MAX_FLIPS} times while the pieces of the request were computed; expected "
            "one version for all of them; send fewer continuations per request"
        )

    def _matches(self, kind: str, items: list[Any]) -> list[ItemMatch | ItemError]:
        return [self._match(kind, item) for item in items]

    def _match(self, kind: str, item: Any) -> ItemMatch | ItemError:
        try:
            return {"id": item_id(item), "match": self._is_match(kind, item)}
        except ForethoughtError as error:
            return {"id": item_id(item), "error": failure(error)}

    def _is_match(self, kind: str, item: Any) -> bool:
        check_item(item, ("id", "prediction", "truth", "token_bytes"))
        prediction = read_text(item.get("prediction"), "prediction")
        truth = read_text(item.get("truth"), "truth")
        if kind != "byte_prefix":
            if item.get("token_bytes") is not None:
                raise InvalidInput(f"kind {kind} takes no token_bytes; leave them out")
            return (match.exact if kind == "exact" else match.numeric)(prediction, truth)
        if item.get("token_bytes") is None:
            return match.byte_prefix(prediction, truth, self._tokenizer().token_bytes(truth))
        given = read_ids(item["token_bytes"], "token_bytes", "byte length")
        return match.byte_prefix(prediction, truth, given)


def _parts(costs: list[int], max_tokens: int) -> list[list[int]]:
    """Runs of consecutive indices, each within ``max_tokens``; a larger index is a part by itself."""
    parts: list[list[int]] = []
    left = 0
    for index, cost in enumerate(costs):
        left -= cost
        if not parts or left < 0:
            parts.append([])
            left = max_tokens - cost
        parts[-1].append(index)
    return parts
