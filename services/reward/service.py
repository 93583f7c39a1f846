"""The transport-independent core: HTTP and gRPC call these methods and only translate.

Design: methods take plain JSON values (dicts, lists or tuples, strings, numbers), validate them here, and
return typed dicts, which HTTP writes as is and gRPC reads by key. A request is checked against the limits
before each of its costs: it is counted, then tokenised (:mod:`services.reward.conversions`), then queued
as jobs of the batcher. The price is that a request is tokenised by the tokenizer served when it arrives: if
weights with a *different* tokenizer replace it before the job runs, ids of the old one are scored. All
weights of one run share one tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from forethought import estimators
from forethought.compute.entropy import EntropyQuery
from forethought.compute.logprob import Continuation
from forethought.errors import ForethoughtError, InvalidInput
from forethought.objectives import Objective
from forethought.scatter import compute_valid
from services.reward import match
from services.reward.batching import Batcher, Piece
from services.reward.conversions import LARGE, Conversions
from services.reward.groups import GroupQuery
from services.reward.jobs import (
    EntropyJob,
    EntropyResult,
    Job,
    LogprobsJob,
    LogprobsResult,
    Result,
    run_jobs,
)
from services.reward.limits import Limits, num_thoughts
from services.reward.memory import BodyMemory
from services.reward.pieces import MAX_FLIPS, GroupScoring, results_of, runs, weights_changed
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


class RewardService:
    """Scores, log-probs, matches and entropies for any number of concurrent callers.

    A request raises InvalidInput (it is invalid), TooLarge (over a limit), NotReady (no weights yet),
    Overloaded (too many tokens are queued) or ForethoughtError (a result is not finite); cancelling a call
    removes its work from the queue. All methods run on one event loop. ``conversions`` and ``memory`` are
    for what HTTP and gRPC do before and after a call.

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
        self.limits = limits
        self.conversions, self.memory = Conversions(), BodyMemory(limits.max_waiting_bytes)
        self._facts: TokenizerFacts | None = None
        self.batcher: Batcher[Job, Result] = Batcher(
            self._compute,
            limits.max_batch_tokens,
            limits.max_waiting_tokens,
            limits.one_at_a_time,
        )
        self._groups = GroupScoring(scorer, self.batcher, limits.max_batch_tokens)

    async def score(
        self, objective: Any, items: Any, *, num_body_bytes: int | None = None
    ) -> ScoreReply:
        """Rewards and advantages of every item's thoughts; an invalid item is an error inside the reply.

        An item is ``{"id"?, "context" | "context_ids", "target" | "target_ids", "thoughts": [text or
        ids]}``, or a typed :class:`ScoreItem`. ``num_body_bytes`` is the size of the body, if known.
        """
        name = self._known_objective(objective)
        raw = read_items(items)
        self.limits.check_items(len(raw))
        self.limits.check_thoughts(sum(map(num_thoughts, raw)))
        size = num_units(raw) if num_body_bytes is None else num_body_bytes
        read = self._query_reader(name)
        queries = (
            [read(item) for item in raw]
            if size < LARGE
            else await self.conversions.map(size, read, raw)
        )
        valid = [query for query in queries if isinstance(query, GroupQuery)]
        scored = await self._groups.score(valid, self._objectives[name], self._estimators[name])
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
        queries = await self._read_continuations(item, continuations)
        costs = [len(q.prefix_ids) + len(q.continuation_ids) for q in queries]
        self.limits.check_reply(sum(len(q.continuation_ids) for q in queries))
        pieces: list[Piece[Job]] = [
            Piece(LogprobsJob(name, tuple(queries[i] for i in part)), sum(costs[i] for i in part))
            for part in runs(costs, self.limits.max_batch_tokens)
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
        self.limits.check_items(len(raw))
        matched = await self.conversions.map(
            num_units(raw), lambda item: self._match(name, item), raw
        )
        return {"items": matched}

    async def entropy(
        self, *, text: Any = None, token_ids: Any = None, top_k: Any = 16, renormalise: Any = False
    ) -> EntropyReply:
        """Entropy in nats of the policy's prediction of every token but the first from all before it.

        Over the ``top_k`` most likely tokens; ``renormalise`` makes their probabilities sum to 1.
        """
        k, flag = read_positive(top_k, "top_k"), read_flag(renormalise, "renormalise")
        item = {"text": text, "token_ids": token_ids}
        found = await self.conversions.run(
            num_units(item),
            lambda: text_or_ids(item, "text", self._tokenizer().bounded, "token_ids"),
        )
        if len(found) < 2:
            raise InvalidInput(
                "got 1 token; expected at least 2, because an entropy is that of predicting a token "
                "from those before it"
            )
        bos_ids = self._tokenizer().special_tokens.bos_ids
        bos_ids = () if found[: len(bos_ids)] == bos_ids else bos_ids
        num_tokens = len(bos_ids) + len(found)
        self.limits.check_row(num_tokens)
        self.limits.check_tokens(num_tokens)
        self.limits.check_reply(len(found))
        query = EntropyQuery(found, k, flag, bos_ids)
        pieces: list[Piece[Job]] = [Piece(EntropyJob(query), num_tokens)]
        (result,) = [cast(EntropyResult, r) for r in await results_of(self.batcher, pieces)]
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
        self.conversions.close()

    async def _compute(self, jobs: list[Job]) -> list[Result]:
        return await self._scorer.run(run_jobs, self._scorer, jobs)

    def _tokenizer(self) -> TokenizerFacts:
        tokenizer = self._scorer.policy.now.language_model.tokenizer
        facts = self._facts
        if facts is None or facts.tokenizer is not tokenizer:
            facts = self._facts = TokenizerFacts(
                tokenizer, *self._markers, self.limits.max_text_characters
            )
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

    def _query_reader(self, name: str) -> Callable[[Any], GroupQuery | ForethoughtError]:
        """Reads the items of one request, and counts their tokens."""
        facts, objective = self._tokenizer(), self._objectives[name]
        prompting = facts.prompting(objective)
        min_size, num_tokens = self._estimators[name].min_group_size, 0

        def read(item: Any) -> GroupQuery | ForethoughtError:
            nonlocal num_tokens
            try:
                given = read_item(item, facts.bounded, prompting, facts.think_close)
                query = facts.graded(given, objective)
                size = query.num_tokens(self._scorer.shares)
                if size > self.limits.max_batch_tokens:  # else no row of it is longer
                    self.limits.check_row(query.longest_row)
            except ForethoughtError as error:
                return error
            if len(query.thoughts_G) < min_size:
                return InvalidInput(
                    f"thoughts holds {len(query.thoughts_G)}; expected at least {min_size}, because the "
                    f"advantage of objective {name} compares thoughts of a group; send more thoughts"
                )
            num_tokens += size
            self.limits.check_tokens(num_tokens)
            return query

        return read

    async def _read_continuations(
        self, item: dict[str, Any], continuations: Any
    ) -> list[Continuation]:
        if not isinstance(continuations, list | tuple) or not continuations:
            raise InvalidInput(
                f"continuations is {kind_of(continuations)}; expected a list of at least one"
            )
        self.limits.check_thoughts(len(continuations), "continuations")
        facts, size = self._tokenizer(), num_units(item)
        tokenizer = facts.bounded
        given_ids = await self.conversions.run(size, text_or_ids, item, "prefix", tokenizer)
        prefix_ids = facts.special_tokens.with_bos(given_ids)
        num_tokens = 0

        def read(indexed: tuple[int, Any]) -> Continuation:
            nonlocal num_tokens
            where = f"continuations[{indexed[0]}]"
            found = read_continuation(indexed[1], where, tokenizer)
            if not found:
                raise InvalidInput(f"{where} is empty; expected at least one token each")
            self.limits.check_row(len(prefix_ids) + len(found))
            num_tokens += len(prefix_ids) + len(found)
            self.limits.check_tokens(num_tokens)
            return Continuation(prefix_ids, found)

        size += num_units(continuations)
        return await self.conversions.map(size, read, enumerate(continuations))

    async def _of_one_version(self, pieces: list[Piece[Job]]) -> list[LogprobsResult]:
        """The results of all pieces, recomputed if weights changed between two of them."""
        for _ in range(MAX_FLIPS):
            results = [
                cast(LogprobsResult, result) for result in await results_of(self.batcher, pieces)
            ]
            if len({result.manifest.order for result in results}) == 1:
                return results
        raise weights_changed("continuations per request")

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
