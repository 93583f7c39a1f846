"""The HTTP API as OpenAPI documents it.

Design: these classes only document. Requests are parsed by :mod:`services.reward.reading`; the keys that a
request may have are taken from here, so they are declared once. A valid ``/v1/score`` is decoded straight
into its msgspec structs, the fastest way to parse it; replies are the typed dicts of
:mod:`services.reward.replies`. The price is that the types of the other requests are stated here and
checked there.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from services.reward.limits import Limits
from services.reward.replies import EntropyReply, LogprobsReply, MatchReply, ScoreReply
from services.reward.requests import ScoreItem, ScoreRequest

_EXAMPLE_ITEM: JsonDict = {
    "id": "sum-1",
    "context": "3 + 4 = ",
    "target": "7",
    "thoughts": ["three plus four is seven", [11, 12, 13]],
}

MATCH_RULES = (
    "`byte_prefix`: the prediction's UTF-8 bytes are a prefix of the truth's and end at one of its "
    "token boundaries; an empty prediction is wrong. `exact`: the same text, whitespace included. "
    "`numeric`: equal as exact fractions, surrounding whitespace ignored. A number is an optional "
    "sign, ASCII digits (plain, or with a comma before every three: 1,000), an optional decimal "
    "part, an optional exponent of at most three digits and an optional %; or a fraction of two "
    "plain whole numbers, optionally with %. 1,000 = 1000.0 = 1e3 and 50% = 1/2 = 0.5. A prediction "
    "that is not a number is wrong; a truth that is not a number is an error."
)
_TEXTS = ("context", "target", "thoughts", "prefix", "continuations", "text")  # that are tokenised
EXAMPLE_REQUEST: dict[str, Any] = {"objective": "rlp", "items": [_EXAMPLE_ITEM]}


_IDS_AFTER_BOS = (
    "Its token ids, used as is, with or without the model's BOS, which precedes them once."
)


class LogprobsRequest(BaseModel):
    """One prefix and its candidate continuations. Each text is tokenised separately."""

    model_config = ConfigDict(extra="forbid")

    model: Literal["policy", "baseline"] = "policy"
    prefix: str | None = Field(None, description="The conditioning text. Or give prefix_ids.")
    prefix_ids: list[int] | None = Field(None, description=_IDS_AFTER_BOS)
    continuations: list[str | list[int]] = Field(
        description="Texts or token ids, each scored independently.", min_length=1
    )


class MatchItem(BaseModel):
    """A prediction and the truth that it is compared with."""

    model_config = ConfigDict(extra="forbid")

    id: str | int | None = Field(None, description="Returned with the result.")
    prediction: str
    truth: str
    token_bytes: list[int] | None = Field(
        None,
        description="byte_prefix only: the byte length of every token of the truth. Default: as the "
        "served policy's tokenizer splits it.",
    )


class EntropyRequest(BaseModel):
    """A text or its token ids, at least two tokens."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(None, description="Or give token_ids.")
    token_ids: list[int] | None = Field(None, description=_IDS_AFTER_BOS)
    top_k: int = Field(16, description="How many of the most likely tokens are summed over.", ge=1)
    renormalise: bool = Field(
        False, description="Whether their probabilities are renormalised to sum to 1."
    )


def bounded(schema: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """A request's schema with the limits of the service that shows it."""
    found = deepcopy(schema)
    request = found["properties"]
    item = request.get("items", {}).get("items", {}).get("properties", {})
    lists = {
        "items": limits.max_request_items,
        "continuations": limits.max_request_thoughts,
        "thoughts": limits.max_request_thoughts,
    }
    for name, value in (request | item).items():
        if name in lists:
            value["maxItems"] = lists[name]
        if name in _TEXTS:
            kinds = value.get("anyOf") or value["items"]["anyOf"]
            next(kind for kind in kinds if kind["type"] == "string")["maxLength"] = (
                limits.max_text_characters
            )
    return found


def _inline_schema(request: type[msgspec.Struct], item: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON schema of a request, with the schema of its items inlined."""
    _, components = msgspec.json.schema_components((request,))
    schema: dict[str, Any] = components[request.__name__]
    schema["properties"]["items"]["items"] = components[item.__name__]
    return schema


MATCH_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["kind", "items"],
    "additionalProperties": False,
    "properties": {
        "kind": {"enum": ["byte_prefix", "exact", "numeric"]},
        "items": {"type": "array", "minItems": 1, "items": MatchItem.model_json_schema()},
    },
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Documentation of one POST endpoint: what it does, its request schema and its reply type.

    Example:
        ``ENDPOINTS["/v1/score"].keys``
    """

    summary: str
    description: str
    schema: dict[str, Any]
    example: dict[str, Any]
    reply: type

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a request may have."""
        return tuple(self.schema["properties"])

    @property
    def required(self) -> tuple[str, ...]:
        """The keys that a request must have."""
        return tuple(self.schema.get("required", ()))


ENDPOINTS = {
    "/v1/score": Endpoint(
        "Score groups of thoughts",
        "Rewards and advantages of every item's thoughts. An invalid item is reported as an error inside "
        "the 200 reply; the other items are still scored.",
        _inline_schema(ScoreRequest, ScoreItem),
        EXAMPLE_REQUEST,
        ScoreReply,
    ),
    "/v1/logprobs": Endpoint(
        "Log-probs of continuations",
        "Teacher-forced, at temperature 1 over the whole vocabulary, no token masked.",
        LogprobsRequest.model_json_schema(),
        {"model": "policy", "prefix": "3 + 4 = ", "continuations": ["7", [56]]},
        LogprobsReply,
    ),
    "/v1/match": Endpoint(
        "Compare predictions with the truth",
        MATCH_RULES,
        MATCH_SCHEMA,
        {"kind": "numeric", "items": [{"id": 1, "prediction": "50%", "truth": "1/2"}]},
        MatchReply,
    ),
    "/v1/entropy": Endpoint(
        "Entropy at every position",
        "Entropy in nats, over the top_k most likely tokens, of the policy's prediction of each token but "
        "the first from all tokens before it.",
        EntropyRequest.model_json_schema(),
        {"text": "3 + 4 = 7", "top_k": 16, "renormalise": False},
        EntropyReply,
    ),
}
"""Every POST endpoint, by path."""
