"""Errors over gRPC: exception to status on the server, status to exception on the client.

Design: the error's class and its retry-after, which a status code and a message cannot carry, are sent as
trailing metadata, so the client raises the same exception as the server. A status without them (from a
proxy, or from gRPC itself) is mapped by its code alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from forethought.errors import ForethoughtError, Overloaded, error_of_grpc, status_of

ERROR_KEY = "forethought-error"
RETRY_AFTER_KEY = "retry-after"

log = logging.getLogger(__name__)


@asynccontextmanager
async def errors_as_status(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """Abort a call with the status of the error its body raises; log unexpected exceptions."""
    try:
        yield
    except Exception as error:
        status = status_of(error)
        if not isinstance(error, ForethoughtError):
            log.exception("a gRPC call failed")
        await context.abort(grpc.StatusCode[status.grpc_code], status.message, trailers_of(error))


@contextmanager
def status_as_errors(address: str) -> Iterator[None]:
    """The inverse of :func:`errors_as_status`: raise the error returned by the replica at ``address``."""
    try:
        yield
    except grpc.RpcError as error:
        message = f"replica at {address} answered {error.code().name}: {error.details()}"
        raise error_of_call(error, message) from error


def trailers_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a call that failed with ``error``."""
    named = ((ERROR_KEY, type(error).__name__),)
    if isinstance(error, Overloaded):
        return (*named, (RETRY_AFTER_KEY, str(error.retry_after_s)))
    return named


def error_of_call(failed: Any, message: str) -> ForethoughtError:
    """The error that the server raised, reconstructed from a failed call's status and trailers."""
    trailers = read_trailers(failed)
    return error_of_grpc(
        failed.code().name, message, trailers.get(ERROR_KEY, ""), retry_after_s(trailers)
    )


def read_trailers(failed: Any) -> dict[str, str]:
    """The trailing metadata of a failed call."""
    return {key: str(value) for key, value in failed.trailing_metadata() or ()}


def retry_after_s(trailers: Mapping[str, str]) -> float:
    """Seconds after which the server says to retry; 0 if missing or unreadable."""
    text = trailers.get(RETRY_AFTER_KEY, "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
