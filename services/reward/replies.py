"""The replies of the service: typed dicts that HTTP writes as is, gRPC reads by key and OpenAPI shows.

Design: one description serves both the code that builds a reply and the page that documents it.
FastAPI takes a TypedDict as a response model; descriptions and examples are attached as pydantic
metadata. Replies are not validated: mypy checks their types, and building one costs a dict. The types of
one item are final so that ``"error" in item`` narrows them. The price is that a reply which breaks its
type at runtime is sent unnoticed, and that Python 3.11 needs the TypedDict of typing_extensions, a
dependency of pydantic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, final

from pydantic import ConfigDict, Field, with_config
from pydantic.config import JsonDict
from typing_extensions import TypedDict

from forethought.compute.served_model import ServedModel
from forethought.errors import ForethoughtError, status_of
from services.reward.jobs import ScoredGroup
from services.reward.reading import item_id

_EXAMPLE_SCORES: JsonDict = {
    "id": "sum-1",
    "rewards": [0.9, -0.2],
    "advantages": [1.1, -1.1],
    "policy_logprobs": [-0.1, -1.2],
    "baseline_logprob": -1.0,
    "policy_version": 12,
    "baseline_version": 12,
}
_EXAMPLE_ERROR: JsonDict = {
    "id": "sum-2",
    "error": {"status": 400, "message": "target is empty; expected at least one token"},
}
_EXAMPLE_LOGPROBS: JsonDict = {
    "model": "policy",
    "epoch": 1,
    "version": 12,
    "continuations": [{"token_ids": [55], "logprobs": [-0.1], "logprob": -0.1}],
}
_EXAMPLE_ENTROPY: JsonDict = {
    "epoch": 1,
    "version": 12,
    "token_ids": [51, 32, 43],
    "first_position": 1,
    "entropies": [2.1, 0.4],
}


def _example(example: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class ErrorBody(TypedDict):
    """What went wrong: got, expected, remedy."""

    status: int
    message: str


class ErrorReply(TypedDict):
    """The body of every reply whose status is not 200."""

    error: ErrorBody


@final
@with_config(_example(_EXAMPLE_SCORES))
class ItemScores(TypedDict):
    """Scores of one item. Log-likelihoods are in nats, summed over the target's tokens."""

    id: str | int | None
    rewards: Annotated[Sequence[float], Field(description="One per thought, from the objective.")]
    advantages: Annotated[
        Sequence[float], Field(description="One per thought, from the objective's estimator.")
    ]
    policy_logprobs: Annotated[
        Sequence[float], Field(description="log p(target | context, thought).")
    ]
    baseline_logprob: Annotated[
        float,
        Field(
            description="log p(target | context), the think-open token masked out of the softmax."
        ),
    ]
    policy_version: int
    baseline_version: int


@final
@with_config(_example(_EXAMPLE_ERROR))
class ItemError(TypedDict):
    """An item that failed; the other items of the request are unaffected."""

    id: str | int | None
    error: ErrorBody


@with_config(_example({"items": [_EXAMPLE_SCORES, _EXAMPLE_ERROR]}))
class ScoreReply(TypedDict):
    """One result per item, in order."""

    items: list[ItemScores | ItemError]


class ContinuationLogprobs(TypedDict):
    """Teacher-forced log-probs of a continuation's tokens, in nats, and their sum."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    logprob: float


@with_config(_example(_EXAMPLE_LOGPROBS))
class LogprobsReply(TypedDict):
    """One result per continuation, in order, all from one version. Nothing is masked or rescaled."""

    model: str
    epoch: int
    version: int
    continuations: list[ContinuationLogprobs]


@final
class ItemMatch(TypedDict):
    """Whether the prediction of one item is correct."""

    id: str | int | None
    match: bool


@with_config(_example({"items": [{"id": 1, "match": True}]}))
class MatchReply(TypedDict):
    """One result per item, in order; an invalid item is an error, the others are still compared."""

    items: list[ItemMatch | ItemError]


@with_config(_example(_EXAMPLE_ENTROPY))
class EntropyReply(TypedDict):
    """``entropies[j]`` is that of predicting ``token_ids[first_position + j]`` from all earlier tokens."""

    epoch: int
    version: int
    token_ids: Sequence[int]
    first_position: Annotated[int, Field(description="1, because nothing precedes token 0.")]
    entropies: Annotated[Sequence[float], Field(description="In nats; one fewer than tokens.")]


class ModelInfo(TypedDict):
    """A served model: its weights (version, digest, dtype, size) and its length limit in tokens."""

    name: str
    epoch: int
    version: int
    sha256: str
    dtype: str
    num_parameters: int
    max_length_tokens: int


class ModelsReply(TypedDict):
    """The served models. Without a separate baseline the policy itself scores the no-think branch."""

    policy: ModelInfo
    baseline: ModelInfo | None
    objectives: list[str]


def failure(error: BaseException) -> ErrorBody:
    """An exception as the body of an error."""
    status = status_of(error)
    return {"status": status.http_status, "message": status.message}


def score_answer(item: Any, outcome: ScoredGroup | ForethoughtError) -> ItemScores | ItemError:
    """The scores of an item, or its error."""
    if isinstance(outcome, ForethoughtError):
        return {"id": item_id(item), "error": failure(outcome)}
    likelihoods = outcome.likelihoods
    return {
        "id": item_id(item),
        "rewards": outcome.rewards_G,
        "advantages": outcome.advantages_G,
        "policy_logprobs": likelihoods.policy_logprobs_G,
        "baseline_logprob": likelihoods.baseline_logprob,
        "policy_version": likelihoods.policy_version,
        "baseline_version": likelihoods.baseline_version,
    }


def model_answer(served: ServedModel) -> ModelInfo:
    """Describe a served model.

    Raises:
        NotReady: no weights yet.
    """
    manifest, language_model = served.now.manifest, served.now.language_model
    return {
        "name": manifest.model,
        "epoch": manifest.epoch,
        "version": manifest.version,
        "sha256": manifest.sha256,
        "dtype": manifest.dtype,
        "num_parameters": sum(p.numel() for p in language_model.model.parameters()),
        "max_length_tokens": language_model.max_length_tokens,
    }
