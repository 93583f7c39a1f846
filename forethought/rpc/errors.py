"""Errors over gRPC: exception to status on the server, status to exception on the client.

Design: what a status code and a message cannot tell, the class of the error and when to ask again, travels
as trailing metadata, so that a caller gets back the exception that the server raised. A status without
them (from a proxy, or from gRPC itself) is read by its code alone.
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
    """Answer a call with the status of the error its body raises; log what is our own fault."""
    try:
        yield
    except Exception as error:
        status = status_of(error)
        if not isinstance(error, ForethoughtError):
            log.exception("a gRPC call failed")
        await context.abort(grpc.StatusCode[status.grpc_code], status.message, trailers_of(error))


@contextmanager
def status_as_errors(address: str) -> Iterator[None]:
    """The inverse of :func:`errors_as_status`: raise what the replica at ``address`` answered."""
    try:
        yield
    except grpc.RpcError as error:
        told = f"replica at {address} answered {error.code().name}: {error.details()}"
        raise error_of_call(error, told) from error


def trailers_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of a call that failed with ``error``."""
    named = ((ERROR_KEY, type(error).__name__),)
    if isinstance(error, Overloaded):
        return (*named, (RETRY_AFTER_KEY, str(error.retry_after_s)))
    return named


def error_of_call(failed: Any, message: str) -> ForethoughtError:
    """The error that the server raised, by the status and trailers of a failed call."""
    trailers = read_trailers(failed)
    return error_of_grpc(
        failed.code().name, message, trailers.get(ERROR_KEY, ""), retry_after_s(trailers)
    )


def read_trailers(failed: Any) -> dict[str, str]:
    """The trailing metadata of a failed call."""
    return {key: str(value) for key, value in failed.trailing_metadata() or ()}


def retry_after_s(trailers: Mapping[str, str]) -> float:
    """When the server says to ask again; 0 where it says nothing readable."""
    text = trailers.get(RETRY_AFTER_KEY, "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
