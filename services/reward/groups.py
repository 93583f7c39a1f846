"""One group as the scorer sees it: query, branches, validation, likelihoods.

Design: a group is validated before any forward pass, with a clear message, against the very models that
will score it, because an invalid token id or length would otherwise fail the whole batch. The price is
one more pass over the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import TypeAlias

from forethought.compute.logprob import Continuation
from forethought.compute.model import LanguageModel
from forethought.compute.served_model import Serving
from forethought.corpus.token_decoder import TokenDecoder
from forethought.errors import ForethoughtError
from forethought.objectives import Objective
from forethought.objectives.parts.grading import GroundTruth, TokenBytes
from forethought.stops import Stops
from forethought.types import Prompting, Thought


@dataclass(frozen=True, slots=True)
class GroupQuery:
    """The query of one position: how likely is the target after each thought, and without a thought?

    Only ``thought_ids`` and ``closed`` of a thought matter here; a closed thought ends with
    ``prompting.close_marker_ids``. ``wants_target`` is False if the reward needs no likelihood of the
    target. ``predictions_G`` and ``truth`` are for grading; ``wants_predictions`` requests the log-prob of
    the first token of each prediction without a thought. ``target_logprobs_G`` are log p(target | context,
    thought) where the sampler handed them on, computed by the version that is to score; empty where not.

    Example:
        ``GroupQuery((1, 5, 9), (42,), prompting, (Thought((4, 40), (), (), closed=True),))``
    """

    context_ids_N: tuple[int, ...]
    target_ids_H: tuple[int, ...]
    prompting: Prompting
    thoughts_G: tuple[Thought, ...]
    wants_target: bool = True
    predictions_G: tuple[TokenBytes | None, ...] = ()
    truth: GroundTruth | None = None
    wants_predictions: bool = False
    target_logprobs_G: tuple[float, ...] = ()
    num_thought_tokens: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Count the tokens once: admission, pieces and batches all ask."""
        num_tokens = sum(len(thought.token_ids_L) for thought in self.thoughts_G)
        object.__setattr__(self, "num_thought_tokens", num_tokens)

    def num_tokens(self, shares: bool) -> int:
        """The tokens to compute, where thoughts share their context or where each has a row of its own."""
        num_thoughts = len(self.thoughts_G)
        num_contexts = 1 if shares else num_thoughts
        around = num_contexts * self._num_trunk_tokens + num_thoughts * self._num_around_tokens
        return around + self.num_thought_tokens + self._num_no_think_tokens

    @property
    def first_ids_G(self) -> tuple[int | None, ...]:
        """The first predicted token of each thought, None if there is none that is a whole token."""
        if not self.wants_predictions:
            return ()
        return tuple(p.token_ids_L[0] if p else None for p in self.predictions_G)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest branch."""
        longest = max((len(thought.token_ids_L) for thought in self.thoughts_G), default=0)
        thinking = self._num_trunk_tokens + self._num_around_tokens + longest
        return max(thinking, self._num_no_think_tokens)

    def parts(self, max_tokens: int, shares: bool) -> list[GroupQuery]:
        """The group in parts of consecutive thoughts, each within ``max_tokens`` or of one thought."""
        of_each = self._num_around_tokens + (0 if shares else self._num_trunk_tokens)
        once = self._num_no_think_tokens + (self._num_trunk_tokens if shares else 0)
        starts, left = [0], max_tokens - once
        for index, thought in enumerate(self.thoughts_G):
            cost = of_each + len(thought.token_ids_L)
            left -= cost
            if left < 0 and index > starts[-1]:
                starts.append(index)
                left = max_tokens - once - cost
        return [
            replace(
                self,
                thoughts_G=self.thoughts_G[start:end],
                predictions_G=self.predictions_G[start:end],
                target_logprobs_G=self.target_logprobs_G[start:end],
            )
            for start, end in pairwise((*starts, len(self.thoughts_G)))
        ]

    @property
    def _num_trunk_tokens(self) -> int:
        """Tokens that thinking branches share."""
        before = len(self.prompting.bos_ids) + len(self.prompting.head_ids)
        return before + len(self.context_ids_N)

    @property
    def _num_around_tokens(self) -> int:
        """Tokens of a thinking branch around its thought, without the context."""
        prompting = self.prompting
        return len(prompting.bridge_ids) + len(prompting.close_ids) + len(self.target_ids_H)

    @property
    def _num_no_think_tokens(self) -> int:
        shared = len(self.context_ids_N) + len(self.target_ids_H)
        return shared + self.prompting.num_no_think_tokens


@dataclass(frozen=True, slots=True)
class GroupLikelihoods:
    """A group's finite log-likelihoods in nats, summed over the H target tokens, and the versions used.

    Both versions belong to ``epoch``. Without a separate baseline, ``baseline_version`` is the policy's.
    Fields that the query did not request are empty, ``baseline_logprob`` then 0. A prediction without a
    first token of its own has log-prob -inf.

    Example:
        ``GroupLikelihoods((-0.1, -1.3), -1.0, epoch=1, policy_version=12, baseline_version=12)``
    """

    policy_logprobs_G: tuple[float, ...]
    baseline_logprob: float
    epoch: int
    policy_version: int
    baseline_version: int
    prediction_logprobs_G: tuple[float, ...] = ()

    @property
    def versions(self) -> tuple[int, int, int]:
        """Epoch, policy version and baseline version."""
        return self.epoch, self.policy_version, self.baseline_version


GroupOutcome: TypeAlias = GroupLikelihoods | ForethoughtError
"""A group's likelihoods, or the error that prevented them."""


@dataclass(frozen=True, slots=True)
class HeldModels:
    """The models held for one batch; both are the policy if there is no separate baseline.

    Example:
        ``HeldModels(policy=serving, baseline=serving)``
    """

    policy: Serving
    baseline: Serving


def thinking_branch(query: GroupQuery, thought: Thought) -> Continuation:
    """The target, conditioned on context and thought."""
    return Continuation.after_thought(
        query.prompting,
        query.context_ids_N,
        thought.thought_ids,
        thought.closed,
        query.target_ids_H,
    )


def no_think_branch(query: GroupQuery) -> Continuation:
    """The target, conditioned on the context alone."""
    return Continuation.without_thought(query.prompting, query.context_ids_N, query.target_ids_H)


def policy_branches(query: GroupQuery) -> list[Continuation]:
    """What the policy has to compute: targets after thoughts, then first predicted tokens."""
    is_known = not query.wants_target or query.target_logprobs_G
    thinking = [] if is_known else [thinking_branch(query, one) for one in query.thoughts_G]
    plain = no_think_branch(query)
    predicted = [
        Continuation(plain.prefix_ids, (first_id,), plain.removed_id)
        for first_id in query.first_ids_G
        if first_id is not None
    ]
    return thinking + predicted


def baseline_branches(query: GroupQuery) -> list[Continuation]:
    """A group's branches for the baseline: the target, if the reward needs its likelihood."""
    return [no_think_branch(query)] if query.wants_target else []


def fault_of(query: GroupQuery, held: HeldModels) -> str | None:
    """Why this group cannot be scored, or None; the rest of its batch is scored regardless."""
    prompting = query.prompting
    has_context = query.context_ids_N or prompting.bos_ids  # a BOS alone is one
    if not query.target_ids_H or not query.thoughts_G or not has_context:
        return (
            f"got {len(query.context_ids_N)} context tokens, {len(query.target_ids_H)} target "
            f"tokens and {len(query.thoughts_G)} thoughts; expected at least one of each"
        )
    if not prompting.bridge_ids:
        return "prompting.bridge_ids is empty; expected the think-open marker at its end"
    if prompting.open_id is not None and prompting.open_id in query.target_ids_H:
        return (
            f"the target holds the think-open token {prompting.open_id}, which the no-think branch "
            "masks; choose a position whose target is text"
        )
    for branch in policy_branches(query):
        if fault := branch_fault(branch, held.policy.language_model):
            return fault
    return branch_fault(no_think_branch(query), held.baseline.language_model)


def branch_fault(branch: Continuation, language_model: LanguageModel) -> str | None:
    """Why this model cannot score this branch (too long, or an unknown token id), or None."""
    token_ids = branch.prefix_ids + branch.continuation_ids
    num_read = len(token_ids) - 1  # the last token is predicted, never read
    if num_read > language_model.max_length_tokens:
        return (
            f"got {num_read} tokens of input, the model takes {language_model.max_length_tokens} at "
            "most; shorten context, thought or target"
        )
    vocabulary = language_model.vocabulary
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocabulary:
            return (
                f"got token id {token_id}, expected 0 to {vocabulary - 1}; tokenise with the "
                "model's own tokenizer"
            )
    return None


def likelihoods_of(
    query: GroupQuery,
    policy_logprobs: Sequence[float],
    baseline_logprobs: Sequence[float],
    held: HeldModels,
) -> GroupOutcome:
    """A group's likelihoods from its branches' totals and what was handed on, or an error if one is not
    finite.
    """
    policy, baseline = held.policy.manifest, held.baseline.manifest
    num_predicted = sum(first_id is not None for first_id in query.first_ids_G)
    num_thinking = len(policy_logprobs) - num_predicted
    numbers = query.target_logprobs_G or tuple(policy_logprobs[:num_thinking])
    predicted = iter(policy_logprobs[num_thinking:])
    if not all(map(math.isfinite, (*numbers, *baseline_logprobs))):
        return ForethoughtError(
            f"policy log-probs {list(numbers)}, baseline log-prob {list(baseline_logprobs)}; "
            f"expected finite numbers: the weights (policy version {policy.version}, baseline "
            f"version {baseline.version}) have diverged or overflow in {policy.dtype}"
        )
    return GroupLikelihoods(
        policy_logprobs_G=numbers,
        baseline_logprob=sum(baseline_logprobs),  # of one branch, or of none
        epoch=policy.epoch,
        policy_version=policy.version,
        baseline_version=baseline.version,
        prediction_logprobs_G=tuple(
            -math.inf if first_id is None else next(predicted) for first_id in query.first_ids_G
        ),
    )


def joined(parts: Sequence[GroupLikelihoods]) -> GroupLikelihoods:
    """The likelihoods of a group from those of its parts, which are of the same versions."""
    return replace(
        parts[0],
        policy_logprobs_G=tuple(chain.from_iterable(part.policy_logprobs_G for part in parts)),
        prediction_logprobs_G=tuple(
            chain.from_iterable(part.prediction_logprobs_G for part in parts)
        ),
    )


def predictions_of(
    thoughts_G: Sequence[Thought], objective: Objective, decoder: TokenDecoder
) -> tuple[TokenBytes | None, ...]:
    """The prediction after every thought; None if the thought did not close or predicts nothing. Shape [G].

    If a prediction may end early, the token that ends it is not part of it.
    """
    decode = decoder.decode_answer if objective.prediction_ends else decoder.decode
    return tuple(
        objective.prediction(decode(thought.prediction_ids)) if thought.closed else None
        for thought in thoughts_G
    )


def split_at_close(thought: Thought, close_ids: tuple[int, ...]) -> Thought:
    """Split a thought sent in one piece: what follows its first close marker is the prediction."""
    ids, end = thought.token_ids_L, Stops(sequences=(close_ids,)).end(thought.token_ids_L)
    if end is None:
        return thought
    num_after = len(ids) - end
    return Thought(ids, thought.behaviour_logprobs_L, thought.version_spans, True, num_after)
