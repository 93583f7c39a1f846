"""The reward service's calls and their typed replies.

Design: each call's builder and reader are defined together and use only plain values, so both transports
and both kinds of client share them. A failed item is returned as an exception value, as everywhere in this
project, so that the results of the other items are not lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from forethought.clients.retrying import Request
from forethought.errors import ForethoughtError, error_of_http

Tokens: TypeAlias = str | Sequence[int]
"""A text, encoded by the served policy's tokenizer, or token ids, used as given."""

ModelName: TypeAlias = Literal["policy", "baseline"]
MatchKind: TypeAlias = Literal["byte_prefix", "exact", "numeric"]


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A context, its target, and the thoughts to compare.

    Example:
        ``ScoreItem("3 + 4 = ", "7", ("three plus four is seven", (11, 12, 13)))``
    """

    context: Tokens
    target: Tokens
    thoughts_G: Sequence[Tokens]


@dataclass(frozen=True, slots=True)
class ItemScores:
    """One value per thought; log-likelihoods are in nats, summed over the target's tokens.

    Example:
        ``ItemScores((0.9, -0.2), (1.1, -1.1), (-0.1, -1.2), -1.0, 12, 12)``
    """

    rewards_G: tuple[float, ...]
    advantages_G: tuple[float, ...]
    policy_logprobs_G: tuple[float, ...]
    baseline_logprob: float
    policy_version: int
    baseline_version: int


@dataclass(frozen=True, slots=True)
class ContinuationLogprobs:
    """Log-probs of a continuation's tokens in nats, and their sum. Shape [H].

    Example:
        ``ContinuationLogprobs((9, 4), (-0.2, -1.1), -1.3)``
    """

    token_ids_H: tuple[int, ...]
    logprobs_H: tuple[float, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probs of each continuation, in order, and the weights that computed them.

    Example:
        ``Logprobs("policy", 1, 12, (ContinuationLogprobs((9,), (-0.2,), -0.2),))``
    """

    model: str
    epoch: int
    version: int
    continuations: tuple[ContinuationLogprobs, ...]


@dataclass(frozen=True, slots=True)
class MatchItem:
    """A prediction to compare with the truth; ``token_bytes`` are the byte lengths of the truth's tokens.

    Example:
        ``MatchItem("1,000", "1e3")``
    """

    prediction: str
    truth: str
    token_bytes: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Entropies:
    """``entropies[j]`` is that of predicting ``token_ids_N[first_position + j]`` from its prefix, in nats.

    Example:
        ``Entropies(1, 12, (5, 17, 9), 1, (1.7, 0.2))``
    """

    epoch: int
    version: int
    token_ids_N: tuple[int, ...]
    first_position: int
    entropies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model.

    Example:
        ``ModelInfo("policy", 1, 12, "9f…", "float32", 430_000, 1024)``
    """

    name: str
    epoch: int
    version: int
    sha256: str
    dtype: str
    num_parameters: int
    max_length_tokens: int


@dataclass(frozen=True, slots=True)
class Models:
    """The models served; without a baseline the policy scores the no-think branch too.

    Example:
        ``Models(policy=info, baseline=None, objectives=("rlp",))``
    """

    policy: ModelInfo
    baseline: ModelInfo | None
    objectives: tuple[str, ...]


ItemOutcome: TypeAlias = ItemScores | ForethoughtError
MatchOutcome: TypeAlias = bool | ForethoughtError


def score(items: Sequence[ScoreItem], objective: str) -> Request[tuple[ItemOutcome, ...]]:
    """Rewards of every item's thoughts."""
    body = {
        "objective": objective,
        "items": [
            _named("context", item.context)
            | _named("target", item.target)
            | {"thoughts": [_plain(thought) for thought in item.thoughts_G]}
            for item in items
        ],
    }
    return Request("Score", "/v1/score", body, _read_scores)


def logprobs(
    model: ModelName, prefix: Tokens, continuations: Sequence[Tokens]
) -> Request[Logprobs]:
    """Log-probs of every continuation after one prefix."""
    body = {"model": model, "continuations": [_plain(value) for value in continuations]}
    return Request("Logprobs", "/v1/logprobs", body | _named("prefix", prefix), _read_logprobs)


def match(items: Sequence[MatchItem], kind: MatchKind) -> Request[tuple[MatchOutcome, ...]]:
    """Whether each prediction is right."""
    fields = [asdict(item) for item in items]
    body = {
        "kind": kind,
        "items": [{k: v for k, v in item.items() if v is not None} for item in fields],
    }
    return Request("Match", "/v1/match", body, _read_matches)


def entropy(tokens: Tokens, top_k: int, renormalise: bool) -> Request[Entropies]:
    """Entropy of every token's prediction."""
    value = _plain(tokens)
    options = {"top_k": top_k, "renormalise": renormalise}
    body = {"text" if isinstance(value, str) else "token_ids": value, **options}
    return Request("Entropy", "/v1/entropy", body, _read_entropies)


def models() -> Request[Models]:
    """The models served and the available objectives."""
    return Request("Models", "/v1/models", None, _read_models)


def _read_scores(reply: Mapping[str, Any]) -> tuple[ItemOutcome, ...]:
    return tuple(
        _error(item)
        or ItemScores(
            tuple(item["rewards"]),
            tuple(item["advantages"]),
            tuple(item["policy_logprobs"]),
            item["baseline_logprob"],
            item["policy_version"],
            item["baseline_version"],
        )
        for item in reply["items"]
    )


def _read_logprobs(reply: Mapping[str, Any]) -> Logprobs:
    continuations = tuple(
        ContinuationLogprobs(tuple(one["token_ids"]), tuple(one["logprobs"]), one["logprob"])
        for one in reply["continuations"]
    )
    return Logprobs(reply["model"], reply["epoch"], reply["version"], continuations)


def _read_matches(reply: Mapping[str, Any]) -> tuple[MatchOutcome, ...]:
    return tuple(_error(item) or bool(item["match"]) for item in reply["items"])


def _read_entropies(reply: Mapping[str, Any]) -> Entropies:
    return Entropies(
        reply["epoch"],
        reply["version"],
        tuple(reply["token_ids"]),
        reply["first_position"],
        tuple(reply["entropies"]),
    )


def _read_models(reply: Mapping[str, Any]) -> Models:
    baseline = reply["baseline"]
    return Models(
        ModelInfo(**reply["policy"]),
        ModelInfo(**baseline) if baseline else None,
        tuple(reply["objectives"]),
    )


def _error(item: Mapping[str, Any]) -> ForethoughtError | None:
    error = item.get("error")
    return error_of_http(error["status"], error["message"]) if error else None


def _plain(tokens: Tokens) -> str | list[int]:
    return tokens if isinstance(tokens, str) else list(tokens)


def _named(name: str, tokens: Tokens) -> dict[str, Any]:
    return {name if isinstance(tokens, str) else f"{name}_ids": _plain(tokens)}
