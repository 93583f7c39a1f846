"""The bodies of POST requests, decoded.

Design: what is large is counted before it is decoded (:mod:`services.reward.http.structure`), because
decoding pays for every value at once. The price is that such a request is refused without the count.
"""

from __future__ import annotations

from typing import Any

from services.reward.conversions import LARGE
from services.reward.http.openapi import ENDPOINTS
from services.reward.http.structure import check_structure
from services.reward.limits import Limits
from services.reward.reading import check_keys, read_object, read_score_request


def score_request(body: bytes, limits: Limits) -> tuple[Any, Any]:
    """The objective and the items of a ``/v1/score``.

    Raises:
        TooLarge: more values than a request within the limits has.
        InvalidInput: the body is not JSON in UTF-8, not an object, or has an unknown key.
    """
    if len(body) >= LARGE:
        check_structure(body, limits.max_request_items, limits)
    return read_score_request(body)


def arguments(body: bytes, path: str, limits: Limits) -> dict[str, Any]:
    """The keys of a request to ``path``; missing required ones are None.

    Raises:
        TooLarge: more values than a request within the limits has.
        InvalidInput: the body is not JSON in UTF-8, not an object, or has an unknown key.
    """
    endpoint = ENDPOINTS[path]
    if len(body) >= LARGE:
        is_of_items = "items" in endpoint.keys
        max_elements = limits.max_request_items if is_of_items else limits.max_request_thoughts
        check_structure(body, max_elements, limits)
    given = read_object(body)
    check_keys(given, endpoint.keys, "the request")
    return dict.fromkeys(endpoint.required) | given
