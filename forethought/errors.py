"""Every error a user or a peer can see, each with its HTTP and gRPC status.

    ForethoughtError
    ├── InvalidInput        400  INVALID_ARGUMENT     says what was got, what was expected, what to do
    │   ├── TooLarge        413  INVALID_ARGUMENT     larger than this server accepts
    │   └── NotInstalled                              a library from an optional extra is missing
    ├── Unauthenticated     401  UNAUTHENTICATED      no token, or one this server does not accept
    ├── Forbidden           403  PERMISSION_DENIED    the token does not grant this
    ├── NotReady            503  UNAVAILABLE          no verified weights yet
    ├── Stale               409  FAILED_PRECONDITION  a push or task older than what is served
    ├── Unreachable         503  UNAVAILABLE          a peer (Redis, a replica) cannot be reached
    │   └── EngineLost      503  UNAVAILABLE          this replica's engine or scorer died
    │       └── EngineHung  503  UNAVAILABLE          or does not advance
    ├── Overloaded          429  RESOURCE_EXHAUSTED   the queue is full; retry later
    └── Superseded          409  ABORTED              a newer learner owns the run

``InvalidInput`` is also a ``ValueError``, so library callers need not know this hierarchy. Exceptions and
statuses are mapped to each other only here: :func:`status_of` on the server, :func:`error_of_http` and
:func:`error_of_grpc` on the client. gRPC codes are strings, so importing errors does not load grpc.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass


class ForethoughtError(Exception):
    """Root of the hierarchy."""

    http_status = 500
    grpc_code = "INTERNAL"


class InvalidInput(ForethoughtError, ValueError):
    """The input is invalid; the message says what was got, what was expected, and the remedy."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class NotInstalled(InvalidInput):
    """The feature needs a library that is not installed."""


class TooLarge(InvalidInput):
    """A request is larger than this server accepts."""

    http_status = 413


class Unauthenticated(ForethoughtError):
    """The caller sent no token, or one that this server does not accept."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"


class Forbidden(ForethoughtError):
    """The caller's token is valid but does not grant this."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"


class NotReady(ForethoughtError):
    """No verified weights are being served yet."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class Stale(ForethoughtError):
    """A push or request is older than, or does not belong to, what is being served."""

    http_status = 409
    grpc_code = "FAILED_PRECONDITION"


class Unreachable(ForethoughtError):
    """A peer cannot be reached."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class EngineLost(Unreachable):
    """The engine or scorer of this process died or is in an unknown state; only a new process helps."""


class EngineHung(EngineLost):
    """The engine or scorer of this process does not advance; its threads may never end."""


class Overloaded(ForethoughtError):
    """The server's queue is full; retry after ``retry_after_s`` seconds."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Superseded(ForethoughtError):
    """A newer epoch has taken over the run; this process must stop."""

    http_status = 409
    grpc_code = "ABORTED"


_UNWRITABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def why_unwritable(error: OSError) -> str:
    """In one line, why a file cannot be written: no space, read-only, or closed; else empty.

    Example:
        ``why_unwritable(OSError(errno.ENOSPC, "No space left on device"))``
    """
    is_closed = error.errno == errno.EACCES and error.filename  # without one it is a socket's
    if error.errno not in _UNWRITABLE and not is_closed:
        return ""
    where = f" ({error.filename})" if error.filename else ""
    return (
        f"a file cannot be written: {error.strerror}{where}; free some space, or let this user "
        "write there, and run the same command again"
    )


@dataclass(frozen=True, slots=True)
class Status:
    """How an exception is reported to a peer.

    Example:
        ``Status(400, "INVALID_ARGUMENT", "target is empty; give at least one token")``
    """

    http_status: int
    grpc_code: str
    message: str


def status_of(error: BaseException) -> Status:
    """Map any exception to its status; only errors of this hierarchy show their message to a peer."""
    if isinstance(error, ForethoughtError):
        return Status(error.http_status, error.grpc_code, str(error))
    return Status(500, "INTERNAL", f"internal error ({type(error).__name__}); see the server's log")


_KINDS = (InvalidInput, Unauthenticated, Forbidden, Stale, Superseded, Overloaded, Unreachable)
_KIND_OF_GRPC: Mapping[str, type[ForethoughtError]] = {
    **{kind.grpc_code: kind for kind in _KINDS},
    "DEADLINE_EXCEEDED": Unreachable,
}
_KIND_OF_NAME = {
    kind.__name__: kind for kind in (ForethoughtError, NotInstalled, TooLarge, NotReady, *_KINDS)
}
_KIND_OF_HTTP: Mapping[int, type[ForethoughtError]] = {
    **{kind.http_status: kind for kind in _KINDS},
    **dict.fromkeys((404, 405, 422), InvalidInput),
    413: TooLarge,
    409: Stale,
    503: NotReady,
}


def error_of_http(status: int, message: str, retry_after_s: float = 0.0) -> ForethoughtError:
    """The error for an HTTP status; ``ForethoughtError`` for one that no Forethought server returns."""
    return _error(_KIND_OF_HTTP.get(status, ForethoughtError), message, retry_after_s)


def error_of_grpc(
    code: str, message: str, name: str = "", retry_after_s: float = 0.0
) -> ForethoughtError:
    """The error for a gRPC status: the class called ``name`` if there is one, else the code's class."""
    of_code = _KIND_OF_GRPC.get(code, ForethoughtError)
    return _error(_KIND_OF_NAME.get(name, of_code), message, retry_after_s)


def is_known_http(status: int) -> bool:
    """Whether Forethought servers return this status for failed requests."""
    return status in _KIND_OF_HTTP


def one_line(error: BaseException, max_characters: int = 300) -> str:
    """What a library says in an error, on one line; the error's type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= max_characters else text[:max_characters] + "…"


def _error(kind: type[ForethoughtError], message: str, retry_after_s: float) -> ForethoughtError:
    if issubclass(kind, Overloaded):
        return kind(message, retry_after_s=int(retry_after_s) or 1)
    return kind(message)
