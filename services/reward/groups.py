"""One group as the scorer sees it: question, branches, what may be wrong, answer.

Design: a group is checked whole before any forward pass, in words, against the very models that
will score it, because an id or a length that does not fit would otherwise fail the batch it came
in. The price is one more walk over the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from forethought.compute.logprob import Continuation
from forethought.compute.model import LanguageModel
from forethought.compute.served_model import Serving
from forethought.corpus.token_decoder import TokenDecoder
from forethought.errors import ForethoughtError
from forethought.objectives import Objective
from forethought.objectives.parts.grading import GroundTruth, TokenBytes
from forethought.types import Prompting, Thought


@dataclass(frozen=True, slots=True)
class GroupQuery:
    """One position's question: how likely is the target after each thought, and without any?

    Of a thought only ``thought_ids`` and ``closed`` matter here; a closed one ends with the first
    of ``prompting.close_ids``. Where the reward needs no likelihood of the target, ``wants_target`` is
    False. ``predictions_G`` and ``truth`` are for grading; ``wants_predictions`` asks how likely the
    first token of each prediction is without a thought.

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

    @property
    def first_ids_G(self) -> tuple[int | None, ...]:
        """The first predicted token of each thought, None where there is none of its own."""
        if not self.wants_predictions:
            return ()
        return tuple(p.token_ids_L[0] if p else None for p in self.predictions_G)

    @property
    def num_tokens(self) -> int:
        """Tokens that all branches read together; a bound on the work, cheap to compute."""
        p = self.prompting
        shared = len(self.context_ids_N) + len(self.target_ids_H)
        around = shared + p.num_thinking_tokens
        thoughts = sum(around + len(thought.token_ids_L) for thought in self.thoughts_G)
        return thoughts + shared + len(p.no_think_head_ids)


@dataclass(frozen=True, slots=True)
class GroupLikelihoods:
    """The answer: finite log-likelihoods in nats, summed over the H target tokens; and whose.

    Both versions belong to ``epoch``. Without a separate baseline, ``baseline_version`` is the
    policy's. What was not asked for is empty, the baseline's then 0. A prediction without a first
    token of its own has log-probability -inf.

    Example:
        ``GroupLikelihoods((-0.1, -1.3), -1.0, epoch=1, policy_version=12, baseline_version=12)``
    """

    policy_logprobs_G: tuple[float, ...]
    baseline_logprob: float
    epoch: int
    policy_version: int
    baseline_version: int
    prediction_logprobs_G: tuple[float, ...] = ()


GroupOutcome: TypeAlias = GroupLikelihoods | ForethoughtError
"""A group's likelihoods, or why there are none."""


@dataclass(frozen=True, slots=True)
class HeldModels:
    """The models of one batch; both the policy's where there is no separate baseline.

    Example:
        ``HeldModels(policy=serving, baseline=serving)``
    """

    policy: Serving
    baseline: Serving


def thinking_branch(query: GroupQuery, thought: Thought) -> Continuation:
    """The target after context and thought."""
    return Continuation.after_thought(
        query.prompting,
        query.context_ids_N,
        thought.thought_ids,
        thought.closed,
        query.target_ids_H,
    )


def no_think_branch(query: GroupQuery) -> Continuation:
    """The target right after the context."""
    return Continuation.without_thought(query.prompting, query.context_ids_N, query.target_ids_H)


def policy_branches(query: GroupQuery) -> list[Continuation]:
    """All that the policy is asked about a group: targets after thoughts, then first predicted tokens."""
    thinking = [thinking_branch(query, thought) for thought in query.thoughts_G]
    plain = no_think_branch(query)
    predicted = [
        Continuation(plain.prefix_ids, (first_id,), plain.removed_id)
        for first_id in query.first_ids_G
        if first_id is not None
    ]
    return (thinking if query.wants_target else []) + predicted


def baseline_branches(query: GroupQuery) -> list[Continuation]:
    """What the baseline is asked about a group: the target, if anybody wants to know."""
    return [no_think_branch(query)] if query.wants_target else []


def fault_of(query: GroupQuery, held: HeldModels) -> str | None:
    """Why this group cannot be scored, so that its neighbours in the batch still are."""
    prompting = query.prompting
    if not query.target_ids_H or not query.thoughts_G or not query.context_ids_N:
        return (
            f"got {len(query.context_ids_N)} context tokens, {len(query.target_ids_H)} target "
            f"tokens and {len(query.thoughts_G)} thoughts; expected at least one of each"
        )
    if not prompting.bridge_ids:
        return "prompting.bridge_ids is empty; expected the think-open token as its last"
    if prompting.open_id in query.target_ids_H:
        return (
            f"the target holds the think-open token {prompting.open_id}, whose mass the no-think "
            "scorer removes; choose a position whose target is text"
        )
    for branch in policy_branches(query):
        if fault := branch_fault(branch, held.policy.language_model):
            return fault
    return branch_fault(no_think_branch(query), held.baseline.language_model)


def branch_fault(branch: Continuation, language_model: LanguageModel) -> str | None:
    """Why this model cannot read this branch: too long, or an id it does not have."""
    token_ids = branch.prefix_ids + branch.continuation_ids
    num_read = len(token_ids) - 1  # nothing is predicted after the last
    if num_read > language_model.max_length_tokens:
        return (
            f"{num_read} tokens have to be read, the model takes "
            f"{language_model.max_length_tokens}; shorten context, thought or target"
        )
    vocabulary = language_model.model.get_input_embeddings().num_embeddings
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
    """The answer for one group from its branches' totals, or an error where a number is not finite."""
    policy, baseline = held.policy.manifest, held.baseline.manifest
    num_thinking = len(query.thoughts_G) if query.wants_target else 0
    numbers, predicted = policy_logprobs[:num_thinking], iter(policy_logprobs[num_thinking:])
    if not all(map(math.isfinite, (*numbers, *baseline_logprobs))):
        return ForethoughtError(
            f"policy log-probs {list(numbers)}, baseline log-prob {list(baseline_logprobs)}; "
            f"expected finite numbers: the weights (policy version {policy.version}, baseline "
            f"version {baseline.version}) have diverged or overflow in {policy.dtype}"
        )
    return GroupLikelihoods(
        policy_logprobs_G=tuple(numbers),
        baseline_logprob=sum(baseline_logprobs),  # of one, or of none
        epoch=policy.epoch,
        policy_version=policy.version,
        baseline_version=baseline.version,
        prediction_logprobs_G=tuple(
            -math.inf if first_id is None else next(predicted) for first_id in query.first_ids_G
        ),
    )


def predictions_of(
    thoughts_G: Sequence[Thought], objective: Objective, decoder: TokenDecoder
) -> tuple[TokenBytes | None, ...]:
    """What every thought predicts; None where it did not close or says nothing. Shape [G].

    Where a prediction may end early, the token that ends it is no part of it.
    """
    spell = decoder.decode_answer if objective.prediction_ends else decoder.decode
    return tuple(
        objective.prediction(spell(thought.prediction_ids)) if thought.closed else None
        for thought in thoughts_G
    )


def split_at_close(thought: Thought, close_id: int) -> Thought:
    """A thought that came in one piece: what follows its first close token is the prediction."""
    ids = thought.token_ids_L
    if close_id not in ids:
        return thought
    num_after = len(ids) - 1 - ids.index(close_id)
    return Thought(ids, thought.behaviour_logprobs_L, thought.version_spans, True, num_after)
