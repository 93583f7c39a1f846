"""Calls over gRPC.

Design: channels of :mod:`forethought.rpc.channel`, with gRPC's own retries off, because
:mod:`forethought.clients.retrying` retries for every transport. The asyncio channel is created by the first
call, since it belongs to the running loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from forethought.auth import Bearer
from forethought.clients.grpc_methods import METHODS, Method
from forethought.clients.retrying import AttemptFailed, Request
from forethought.errors import InvalidInput, TooLarge, Unreachable
from forethought.rpc.channel import open_blocking_channel, open_channel
from forethought.rpc.errors import error_of_call, read_trailers, retry_after_s
from forethought.wire.codec import check_wire_version

_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_TOO_LARGE = "larger than max"
_RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


class GrpcTransport:
    """Calls the replica at ``host:port``, blocking; thread-safe."""

    def __init__(self, address: str, bearer: Bearer) -> None:
        self._address, self._bearer = address, bearer
        self._channel = open_blocking_channel(address, _OPTIONS)
        self._calls = _Calls(self._channel)

    def attempt(self, request: Request[Any], timeout_s: float) -> Any:
        """Make one attempt."""
        method = METHODS[request.method]
        with _raising_attempt_failed(self._address, timeout_s):
            call = self._calls.named(request.method)
            request, header = method.encode(request.body), self._bearer.header()
            return _decode(method, call(request, timeout=timeout_s, metadata=header), self._address)

    def close(self) -> None:
        """Close the channel; calls in flight fail."""
        self._channel.close()


class AsyncGrpcTransport:
    """Calls the replica at ``host:port`` from one event loop."""

    def __init__(self, address: str, bearer: Bearer) -> None:
        self._address, self._bearer = address, bearer
        self._channel: grpc.aio.Channel | None = None
        self._calls: _Calls | None = None

    async def attempt(self, request: Request[Any], timeout_s: float) -> Any:
        """Make one attempt."""
        if self._calls is None:
            self._channel = open_channel(self._address, _OPTIONS)
            self._calls = _Calls(self._channel)
        method = METHODS[request.method]
        with _raising_attempt_failed(self._address, timeout_s):
            call = self._calls.named(request.method)
            request, header = method.encode(request.body), self._bearer.header()
            reply = await call(request, timeout=timeout_s, metadata=header)
            return _decode(method, reply, self._address)

    async def close(self) -> None:
        """Close the channel; calls in flight fail."""
        if self._channel is not None:
            await self._channel.close()


class _Calls:
    """The callables of one channel's methods, each created once."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._made: dict[str, Any] = {}

    def named(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = getattr(METHODS[name].stub(self._channel), name)
        return self._made[name]


def _decode(method: Method, reply: Any, address: str) -> Any:
    check_wire_version(reply.wire_version, f"the replica at {address}")
    return method.answer(reply)


@contextmanager
def _raising_attempt_failed(address: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _attempt_failed(address, timeout_s, error) from error
    except InvalidInput as error:
        raise AttemptFailed(error) from error


def _attempt_failed(address: str, timeout_s: float, error: Any) -> AttemptFailed:
    code, details = error.code().name, error.details() or ""
    if code == "DEADLINE_EXCEEDED":
        message = f"{address} gave no answer within {timeout_s:.3g} s; raise timeout_s"
        return AttemptFailed(Unreachable(message))
    if code == "UNIMPLEMENTED":
        message = f"{address} does not serve this ({details}); expected the address of a replica "
        return AttemptFailed(InvalidInput(message + "of the client's service"))
    if code == "RESOURCE_EXHAUSTED" and _TOO_LARGE in details:  # gRPC itself: no use to retry
        message = f"{address} accepts no message of this size ({details}); split the request"
        return AttemptFailed(TooLarge(message))
    failure = error_of_call(error, details)
    if isinstance(failure, Unreachable):
        failure = Unreachable(f"cannot reach {address}: {details}; is the service running there?")
    return AttemptFailed(failure, code in _RETRYABLE, retry_after_s(read_trailers(error)))
