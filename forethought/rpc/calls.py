"""How long gRPC calls take here, and how they end.

Design: one interceptor around all services of a server, to be given first, so that calls which another
one turns away are counted too. Streams of unknown length (health's Watch, reflection) are left out:
their duration says nothing. Handlers are wrapped anew for every call, because what an inner interceptor
answers may differ from call to call; the price is a few microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeAlias

import grpc

from forethought.telemetry.distribution import REQUEST_BOUNDS_S, Distribution

Handler: TypeAlias = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class GrpcCalls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Seconds of every call that has one answer, by service, method and status code.

    Example:
        ``calls = GrpcCalls(); await start_grpc_server(servicers, host, port, interceptors=[calls])``
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, str], Distribution] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: Any
    ) -> Any:
        """The handler of a call, timed."""
        handler = await continuation(details)
        if handler is None or handler.response_streaming:  # None: there is no such method
            return handler
        kind = "stream_unary" if handler.request_streaming else "unary_unary"
        _, service, method = details.method.split("/")
        timed = self._timed(getattr(handler, kind), service, method)
        return handler._replace(**{kind: timed})

    def _timed(self, answer: Handler, service: str, method: str) -> Handler:
        async def timed(request: Any, context: grpc.aio.ServicerContext) -> Any:
            started_s, code = perf_counter(), "UNKNOWN"  # what gRPC makes of a stray exception
            try:
                reply = await answer(request, context)
                code = "OK"
                return reply
            except grpc.aio.AbortError:
                code = _code_of(context)
                raise
            except asyncio.CancelledError:  # the caller left, or its deadline passed
                code = "CANCELLED"
                raise
            finally:
                self._add((service, method, code), perf_counter() - started_s)

        return timed

    def _add(self, key: tuple[str, str, str], seconds: float) -> None:
        distribution = self.seconds.get(key)
        if distribution is None:
            distribution = self.seconds[key] = Distribution(REQUEST_BOUNDS_S)
        distribution.add(seconds)


def _code_of(context: grpc.aio.ServicerContext) -> str:
    """The name of the status that a call was aborted with."""
    code = context.code()
    return str(getattr(code, "name", code))  # a number before the call ends, in some releases
