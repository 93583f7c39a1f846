"""The number of values in a large JSON body, counted before any of them is made.

Design: a body of 8 MiB can hold three million arrays; decoding it makes them all, in one call that keeps
every other thread waiting (8 s). So the brackets, texts and commas of a large body are counted first, one
at a time, up to the limit. An array without brackets and texts, such as one of token ids, counts as one.
The price is a second look at large bodies, at some 0.2 us a token; it checks no syntax.
"""

from __future__ import annotations

import re

from forethought.errors import TooLarge
from services.reward.limits import Limits

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|\[[^][{}"]*+\]|[][{},]', re.DOTALL)
_TOKENS_PER_ITEM = 40  # braces, brackets, commas, five keys and their texts
_TOKENS_PER_THOUGHT = 2
_OPEN, _CLOSE = b"[{", b"]}"
_ELEMENT_DEPTH = 2  # in the list within the object


def check_structure(body: bytes, max_elements: int, limits: Limits) -> None:
    """Refuse a body with more values than a request within the limits has.

    ``max_elements`` are those of the list that the request is about, its items or continuations.

    Raises:
        TooLarge: too many elements, or too many values altogether.
    """
    max_tokens = (
        limits.max_request_items * _TOKENS_PER_ITEM
        + limits.max_request_thoughts * _TOKENS_PER_THOUGHT
    )
    depth, num_commas = 0, 0
    for num_tokens, found in enumerate(_TOKEN.finditer(body)):
        token = found[0]
        if len(token) == 1:
            depth += (token in _OPEN) - (token in _CLOSE)
            num_commas += token == b"," and depth == _ELEMENT_DEPTH
        if num_commas >= max_elements:
            raise TooLarge(
                f"the request lists more than {max_elements} items; expected at most that many; split it "
                "into several requests"
            )
        if num_tokens >= max_tokens:
            raise TooLarge(
                f"the body has more than {max_tokens} brackets, commas and texts; expected at most "
                f"{limits.max_request_items} items with {limits.max_request_thoughts} thoughts, which "
                "need fewer; split it into several requests, or raise reward.max_request_items"
            )
