"""Errors over gRPC: what a status code and a message cannot tell travels as trailing metadata.

Design: the class of the error and when to ask again, so that a caller gets back the exception that the
server raised. A status without them (from a proxy, or from gRPC itself) is read by its code alone. No
grpc is imported here: both sides of every door share this file.
"""

from __future__ import annotations

from collections.abc import Mapping

from forethought import errors
from forethought.errors import (
    Forbidden,
    ForethoughtError,
    InvalidInput,
    Overloaded,
    Stale,
    Superseded,
    Unauthenticated,
    Unreachable,
)

ERROR_KEY = "forethought-error"
RETRY_AFTER_KEY = "retry-after"

_KIND_OF_CODE: Mapping[str, type[ForethoughtError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Forbidden,
    "FAILED_PRECONDITION": Stale,
    "ABORTED": Superseded,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unreachable,
    "DEADLINE_EXCEEDED": Unreachable,
}


def trailers_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a call that failed with ``error``."""
    named = ((ERROR_KEY, type(error).__name__),)
    if isinstance(error, Overloaded):
        return (*named, (RETRY_AFTER_KEY, str(error.retry_after_s)))
    return named


def error_of(grpc_code: str, message: str, trailers: Mapping[str, str]) -> ForethoughtError:
    """The inverse of ``status_of`` and :func:`trailers_of`."""
    kind = getattr(errors, trailers.get(ERROR_KEY, ""), None)
    if not (isinstance(kind, type) and issubclass(kind, ForethoughtError)):
        kind = _KIND_OF_CODE.get(grpc_code, ForethoughtError)
    if issubclass(kind, Overloaded):
        return kind(message, retry_after_s=int(retry_after_s(trailers) or 1))
    return kind(message)


def retry_after_s(trailers: Mapping[str, str]) -> float:
    """When the server says to ask again; 0 where it says nothing readable."""
    text = trailers.get(RETRY_AFTER_KEY, "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
