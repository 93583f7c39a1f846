"""What travels over HTTP: the documented bodies, and reading a request that may hold anything.

Design: requests are read by hand rather than by a schema validator, because one bad item has to
fail alone and every refusal says what was got, what was expected and what to do. The classes
below document the bodies in OpenAPI; the keys an item may have are read off them, so that nothing
is declared twice. The price is that types are stated there and checked here.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from forethought.errors import InvalidInput
from forethought.types import Prompting, Thought
from services.reward.scoring import GroupQuery

_EXAMPLE_ITEM: JsonDict = {
    "id": "sum-1",
    "context": "3 + 4 = ",
    "target": "7",
    "thoughts": ["three plus four is seven", [11, 12, 13]],
}
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

EXAMPLE_REQUEST: dict[str, Any] = {"objective": "rlp", "items": [_EXAMPLE_ITEM]}


class TooLarge(InvalidInput):
    """A request asks for more than this server does at once."""

    http_status = 413


class ScoreItem(BaseModel):
    """A context, what follows it, and the thoughts to compare. Each text is tokenised apart."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE_ITEM]})

    id: str | int | None = Field(None, description="Given back with the answer.")
    context: str | None = Field(None, description="What is known. Or give context_ids.")
    context_ids: list[int] | None = Field(None, description="Its token ids, taken as they are.")
    target: str | None = Field(None, description="What follows. Or give target_ids.")
    target_ids: list[int] | None = Field(None, description="Its token ids, taken as they are.")
    thoughts: list[str | list[int]] = Field(
        description="The group, as text or token ids; a missing close token is added for scoring.",
        min_length=1,
    )


class ErrorBody(BaseModel):
    """What went wrong: got, expected, remedy."""

    status: int
    message: str


class ErrorReply(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorBody


class ItemScores(BaseModel):
    """Scores of one item. Log-likelihoods are in nats, summed over the target's tokens."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_SCORES]})

    id: str | int | None
    rewards: list[float] = Field(description="One per thought, by the objective.")
    advantages: list[float] = Field(description="One per thought, by the objective's estimator.")
    policy_logprobs: list[float] = Field(description="log p(target | context, thought).")
    baseline_logprob: float = Field(description="log p(target | context), think-open mass removed.")
    policy_version: int
    baseline_version: int


class ItemError(BaseModel):
    """An item that failed, alone."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_ERROR]})

    id: str | int | None
    error: ErrorBody


class ScoreReply(BaseModel):
    """One answer per item, in order."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_EXAMPLE_SCORES, _EXAMPLE_ERROR]}]}
    )

    items: list[ItemScores | ItemError]


class ModelInfo(BaseModel):
    """A served model: which weights, of what type and size, and how many tokens it reads."""

    name: str
    epoch: int
    version: int
    sha256: str
    dtype: str
    num_parameters: int
    max_length_tokens: int


class ModelsReply(BaseModel):
    """What is served. Without a separate baseline the policy itself scores the no-think branch."""

    policy: ModelInfo
    baseline: ModelInfo | None
    objectives: list[str]


REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["objective", "items"],
    "additionalProperties": False,
    "properties": {
        "objective": {"type": "string", "description": "One of GET /v1/models' objectives."},
        "items": {"type": "array", "minItems": 1, "items": ScoreItem.model_json_schema()},
    },
}


def read_request(body: bytes) -> tuple[str, list[Any]]:
    """The objective's name and the raw items of a request.

    Raises:
        InvalidInput: it is not JSON in UTF-8, or not of this form as a whole.
    """
    value = _read_json(body)
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is {_kind(value)}; expected an object {{objective, items}}")
    _check_keys(value, REQUEST_SCHEMA["properties"], "the request")
    name, items = value.get("objective"), value.get("items")
    if not isinstance(name, str):
        raise InvalidInput(f'objective is {_kind(name)}; expected the name of one, like "rlp"')
    if not isinstance(items, list) or not items:
        raise InvalidInput(f"items is {_kind(items)}; expected a list of at least one item")
    return name, items


def item_id(item: Any) -> str | int | None:
    """The id to answer an item with: its own where that can be written back, else None."""
    given = item.get("id") if isinstance(item, dict) else None
    if type(given) is int or (isinstance(given, str) and _is_unicode(given)):
        return given
    return None


def read_item(item: Any, tokenizer: Any, prompting: Prompting) -> GroupQuery:
    """The query of a raw item.

    Raises:
        InvalidInput: a key is unknown, missing, of the wrong type, or empty.
    """
    if not isinstance(item, dict):
        raise InvalidInput(f"the item is {_kind(item)}; expected an object, see /docs")
    _check_keys(item, ScoreItem.model_fields, "the item")
    if item.get("id") is not None and item_id(item) is None:
        raise InvalidInput(f"id is {_kind(item['id'])}; expected valid text or an integer")
    context_ids_N = _text_or_ids(item, "context", tokenizer)
    target_ids_H = _text_or_ids(item, "target", tokenizer)
    thoughts = item.get("thoughts")
    if not isinstance(thoughts, list) or not thoughts:
        raise InvalidInput(f"thoughts is {_kind(thoughts)}; expected a list of thoughts")
    thoughts_G = tuple(
        _thought(thought, f"thoughts[{index}]", tokenizer, prompting.close_ids)
        for index, thought in enumerate(thoughts)
    )
    return GroupQuery(context_ids_N, target_ids_H, prompting, thoughts_G)


def shown(text: str) -> str:
    """Foreign text, short and in ASCII, safe to put into a message or a log."""
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")


def _thought(value: Any, where: str, tokenizer: Any, close_ids: tuple[int, ...]) -> Thought:
    token_ids_L = _tokens(value, where, tokenizer) if isinstance(value, str) else _ids(value, where)
    if len(close_ids) > 1 and token_ids_L[-len(close_ids) :] == close_ids:
        # A sampled thought ends with the first close token; the scorer adds the others.
        token_ids_L = token_ids_L[: 1 - len(close_ids)]
    closed = bool(close_ids) and token_ids_L[-1:] == close_ids[:1]
    return Thought(token_ids_L, (), (), closed)


def _text_or_ids(item: dict[str, Any], name: str, tokenizer: Any) -> tuple[int, ...]:
    text, token_ids = item.get(name), item.get(f"{name}_ids")
    if (text is None) == (token_ids is None):
        got = "neither" if text is None else "both"
        raise InvalidInput(f"got {got} of {name} and {name}_ids; expected exactly one of them")
    found = _ids(token_ids, f"{name}_ids") if text is None else _tokens(text, name, tokenizer)
    if not found:
        raise InvalidInput(f"{name} is empty; expected at least one token")
    return found


def _tokens(text: Any, where: str, tokenizer: Any) -> tuple[int, ...]:
    if not isinstance(text, str):
        raise InvalidInput(f"{where} is {_kind(text)}; expected text (ids go into {where}_ids)")
    if not _is_unicode(text):
        raise InvalidInput(
            f"{where} holds half a surrogate pair, which is no character; expected valid Unicode: "
            "give token ids where a text is cut inside a character"
        )
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return tuple(encoded["input_ids"])


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InvalidInput(f"{where} is {_kind(value)}; expected a list of token ids")
    for index, token_id in enumerate(value):
        if type(token_id) is not int or token_id < 0:  # a bool is an int to Python, not to us
            raise InvalidInput(
                f"{where}[{index}] is {_kind(token_id)}; expected a token id, an integer from 0"
            )
    return tuple(value)


def _read_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"byte {error.start} of the body is 0x{body[error.start]:02x}, which is not UTF-8; "
            "expected JSON in UTF-8: give token ids where a text is cut inside a character"
        ) from error
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise InvalidInput(f"the body is not JSON: {reason}; for its form see /docs") from error


def _refuse_constant(constant: str) -> NoReturn:
    raise InvalidInput(f"the body holds {constant}, which is not JSON; expected finite numbers")


def _check_keys(value: dict[str, Any], known: dict[str, Any], where: str) -> None:
    unknown = sorted(value.keys() - known.keys())
    if unknown:
        raise InvalidInput(
            f"{where} has the unknown key {shown(unknown[0])}; expected only {', '.join(known)}; "
            "remove or rename it"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """A JSON value as a message names it, without repeating what may be long or unprintable."""
    if value is None:
        return "missing or null"
    if isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else "a huge integer"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return f"{'an' if value else 'an empty'} {'object' if isinstance(value, dict) else 'array'}"
