"""Parsing untrusted requests: JSON bytes to plain values to token ids.

Design: requests are validated by hand rather than by a schema validator, because an invalid item must not
fail the others and every error says what was got, what was expected and how to fix it. A valid
``/v1/score``, the hot request, is first decoded in one go into typed structs and parsed by hand only if
that fails. Both transports use these functions: gRPC turns its messages into the same plain values. The
price is that types are stated in :mod:`services.reward.http.openapi` and checked here; the keys of a
request are taken from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NoReturn, TypeAlias

import msgspec

from forethought.errors import InvalidInput
from forethought.special_tokens import SpecialTokens
from forethought.types import Prompting, Thought
from services.reward.groups import GroupQuery
from services.reward.requests import ScoreItem, ScoreRequest


def _refuse_constant(constant: str) -> NoReturn:
    raise InvalidInput(f"the body holds {constant}, which is not JSON; expected finite numbers")


IdsReader: TypeAlias = Callable[[Any, str], tuple[int, ...]]
"""Token ids of a value, given its name for error messages."""

_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_SCORE_DECODER = msgspec.json.Decoder(ScoreRequest)
_SCORE_KEYS = ScoreRequest.__struct_fields__
_ITEM_KEYS = ScoreItem.__struct_fields__


def read_score_request(body: bytes) -> tuple[Any, Any]:
    """The objective and the items of a ``/v1/score``: typed if the body is valid, else raw.

    Raises:
        InvalidInput: the body is not JSON in UTF-8, not an object, or has an unknown key.
    """
    try:
        request = _SCORE_DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # parse by hand, for the message
        raw = read_object(body)
        check_keys(raw, _SCORE_KEYS, "the request")
        return raw.get("objective"), raw.get("items")
    return request.objective, request.items


def read_object(body: bytes) -> dict[str, Any]:
    """A body as a JSON object.

    Raises:
        InvalidInput: the body is not JSON in UTF-8, or not an object.
    """
    value = read_json(body)
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is {kind_of(value)}; expected an object, see /docs")
    return value


def read_items(items: Any) -> list[Any]:
    """The items of a request, each not yet validated.

    Raises:
        InvalidInput: not a list of at least one.
    """
    if not isinstance(items, list | tuple) or not items:
        raise InvalidInput(f"items is {kind_of(items)}; expected a list of at least one item")
    return list(items)


def item_id(item: Any) -> str | int | None:
    """The id to return with an item's result: its own if that can be encoded, else None."""
    if isinstance(item, ScoreItem):
        return item.id  # decoded text can always be encoded again
    given = item.get("id") if isinstance(item, dict) else None
    if type(given) is int or (isinstance(given, str) and is_unicode(given)):
        return given
    return None


def check_item(item: Any, known: Iterable[str]) -> None:
    """Reject an item that is not an object, has an unknown key, or an id that cannot be returned.

    Raises:
        InvalidInput: any of these.
    """
    if not isinstance(item, dict):
        raise InvalidInput(f"the item is {kind_of(item)}; expected an object, see /docs")
    check_keys(item, known, "the item")
    if item.get("id") is not None and item_id(item) is None:
        raise InvalidInput(f"id is {kind_of(item['id'])}; expected valid text or an integer")


def read_item(item: Any, tokenizer: Any, prompting: Prompting, think_close: str = "") -> GroupQuery:
    """The query of an item, plain or typed. ``think_close`` is the text of the close marker, for thoughts
    sent as text.

    Raises:
        InvalidInput: a key is unknown, missing, of the wrong type, or empty.
    """
    if isinstance(item, ScoreItem):
        return _query(item, tokenizer, prompting, _checked_ids, think_close)
    check_item(item, _ITEM_KEYS)
    thoughts = item.get("thoughts")
    if not isinstance(thoughts, list | tuple) or not thoughts:
        raise InvalidInput(f"thoughts is {kind_of(thoughts)}; expected a list of thoughts")
    typed = ScoreItem(**item)  # the constructor checks no types
    return _query(typed, tokenizer, prompting, read_ids, think_close)


def shown(text: str) -> str:
    """Untrusted text, truncated and in ASCII, safe to embed in a message or a log line."""
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")


def _query(
    item: ScoreItem, tokenizer: Any, prompting: Prompting, ids: IdsReader, think_close: str
) -> GroupQuery:
    context = item.context, item.context_ids, "context", "context_ids"
    target = item.target, item.target_ids, "target", "target_ids"
    context_ids = _one_of(*context, tokenizer, ids)
    if prompting.bos_ids:  # it has one, so that the context needs none
        context_ids = SpecialTokens(prompting.bos_ids).without_bos(context_ids)
    separator = think_close if prompting.num_close_tokens > 1 else ""
    return GroupQuery(
        context_ids,
        _one_of(*target, tokenizer, ids),
        prompting,
        tuple(
            _thought(
                _thought_tokens(value, f"thoughts[{index}]", tokenizer, prompting, separator)
                if isinstance(value, str)
                else ids(value, f"thoughts[{index}]"),
                prompting,
            )
            for index, value in enumerate(item.thoughts)
        ),
    )


def _thought_tokens(
    text: str, where: str, tokenizer: Any, prompting: Prompting, separator: str
) -> tuple[int, ...]:
    """The tokens of a thought's text. A close marker of several tokens is looked for in the text, as a
    tokenizer does for a special token: in the tokens it may be merged with what precedes it."""
    if not separator:
        return read_tokens(text, where, tokenizer)
    first, *others = (read_tokens(piece, where, tokenizer) for piece in text.split(separator))
    return first + tuple(chain.from_iterable(prompting.close_marker_ids + one for one in others))


def _thought(token_ids_L: tuple[int, ...], prompting: Prompting) -> Thought:
    after_ids, marker_ids = prompting.remaining_close(closed=True), prompting.close_marker_ids
    if after_ids and token_ids_L[-len(prompting.close_ids) :] == prompting.close_ids:
        # A sampled thought ends with the close marker; the scorer appends what follows.
        token_ids_L = token_ids_L[: -len(after_ids)]
    closed = bool(marker_ids) and token_ids_L[-len(marker_ids) :] == marker_ids
    return Thought(token_ids_L, (), (), closed)


def read_continuation(value: Any, where: str, tokenizer: Any) -> tuple[int, ...]:
    """The token ids of a continuation: a text is tokenised, a list of ids is used as is.

    Raises:
        InvalidInput: neither, or invalid.
    """
    if isinstance(value, str):
        return read_tokens(value, where, tokenizer)
    return read_ids(value, where)


def text_or_ids(
    item: dict[str, Any], name: str, tokenizer: Any, ids_name: str = ""
) -> tuple[int, ...]:
    """The tokens given as exactly one of ``name`` (text) and ``ids_name`` (ids); at least one.

    Raises:
        InvalidInput: neither or both are given, or the one is of the wrong type or empty.
    """
    ids_name = ids_name or f"{name}_ids"
    return _one_of(item.get(name), item.get(ids_name), name, ids_name, tokenizer, read_ids)


def _one_of(
    text: Any, token_ids: Any, name: str, ids_name: str, tokenizer: Any, ids: IdsReader
) -> tuple[int, ...]:
    if (text is None) == (token_ids is None):
        got = "neither" if text is None else "both"
        raise InvalidInput(f"got {got} of {name} and {ids_name}; expected exactly one of them")
    by_ids = text is None
    found = ids(token_ids, ids_name) if by_ids else read_tokens(text, name, tokenizer, ids_name)
    if not found:
        raise InvalidInput(f"{name} is empty; expected at least one token")
    return found


def _checked_ids(value: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Ids that the decoder has checked already."""
    return value


def read_text(text: Any, where: str) -> str:
    """Text that can be encoded as UTF-8.

    Raises:
        InvalidInput: not text, or half a surrogate pair in it.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"{where} is {kind_of(text)}; expected text")
    if not is_unicode(text):
        raise InvalidInput(
            f"{where} holds half a surrogate pair, which is not a character; expected valid Unicode"
        )
    return text


def read_tokens(text: Any, where: str, tokenizer: Any, ids_name: str = "") -> tuple[int, ...]:
    """The tokens of a text, without special tokens around them: what reads a row puts the BOS before it.

    Raises:
        InvalidInput: not text, or half a surrogate pair in it.
    """
    if not isinstance(text, str):
        ids_name = ids_name or f"{where}_ids"
        raise InvalidInput(
            f"{where} is {kind_of(text)}; expected text (token ids go into {ids_name})"
        )
    if not is_unicode(text):
        raise InvalidInput(
            f"{where} holds half a surrogate pair, which is not a character; expected valid Unicode: "
            "send token ids where a text is cut inside a character"
        )
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return tuple(encoded["input_ids"])


def read_ids(value: Any, where: str, what: str = "token id") -> tuple[int, ...]:
    """A list (or tuple) of non-negative integers, as a tuple.

    Raises:
        InvalidInput: not a list, or it holds anything else.
    """
    if not isinstance(value, list | tuple):
        raise InvalidInput(f"{where} is {kind_of(value)}; expected a list of {what}s")
    if set(map(type, value)) <= {int} and min(value, default=0) >= 0:
        return tuple(value)  # a bool is an int in Python, not here
    for index, number in enumerate(value):
        if type(number) is not int or number < 0:
            raise InvalidInput(
                f"{where}[{index}] is {kind_of(number)}; expected a {what}, an integer from 0"
            )
    raise AssertionError("unreachable: one of the values above is rejected")


def read_choice(value: Any, where: str, choices: Iterable[str]) -> str:
    """One of ``choices``.

    Raises:
        InvalidInput: anything else.
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise InvalidInput(f"{where} is {kind_of(value)}; expected one of {', '.join(known)}")
    return value


def read_flag(value: Any, where: str) -> bool:
    """True or false; 0, 1 and strings are rejected.

    Raises:
        InvalidInput: anything else.
    """
    if not isinstance(value, bool):
        raise InvalidInput(f"{where} is {kind_of(value)}; expected true or false")
    return value


def read_positive(value: Any, where: str) -> int:
    """A positive integer.

    Raises:
        InvalidInput: anything else.
    """
    if type(value) is not int or value < 1:
        raise InvalidInput(f"{where} is {kind_of(value)}; expected an integer from 1")
    return value


def num_units(value: Any) -> int:
    """Characters and numbers in a plain value: a cheap estimate of the cost of parsing it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(num_units, value.values()))
    if isinstance(value, list | tuple):
        is_flat = not value or isinstance(value[0], int)
        return len(value) if is_flat else sum(map(num_units, value))
    return 1


def read_json(body: bytes) -> Any:
    """A body as a JSON value.

    Raises:
        InvalidInput: the body is not JSON in UTF-8.
    """
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"byte {error.start} of the body is 0x{body[error.start]:02x}, which is not UTF-8; "
            "expected JSON in UTF-8: send token ids where a text is cut inside a character"
        ) from error
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise InvalidInput(f"the body is not JSON: {reason}; see /docs for the schema") from error


def check_keys(value: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Reject keys that would be ignored.

    Raises:
        InvalidInput: a key is unknown.
    """
    if unknown := sorted(value.keys() - set(known)):
        raise InvalidInput(
            f"{where} has the unknown key {shown(unknown[0])}; expected only {', '.join(known)}; "
            "remove or rename it"
        )


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8; JSON escapes can smuggle in lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """A JSON value described for a message, without repeating what may be long or unprintable."""
    if value is None:
        return "missing or null"
    if isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else "a huge integer"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return f"{'an' if value else 'an empty'} {'object' if isinstance(value, dict) else 'array'}"
