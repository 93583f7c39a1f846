"""Duration and status of every gRPC call of a server.

Design: one interceptor around all services of a server. Install it first, so that calls rejected by
another interceptor are counted too. Response streams of unknown length (health's Watch, reflection) are
left out: their duration is meaningless. The handler is wrapped per call, because an inner interceptor
may return a different one each time; the price is a few microseconds.
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
    """Durations of calls with a single response, by service, method and status code.

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
        if handler is None or handler.response_streaming:  # None: the method does not exist
            return handler
        kind = "stream_unary" if handler.request_streaming else "unary_unary"
        _, service, method = details.method.split("/")
        timed = self._timed(getattr(handler, kind), service, method)
        return handler._replace(**{kind: timed})

    def _timed(self, answer: Handler, service: str, method: str) -> Handler:
        async def timed(request: Any, context: grpc.aio.ServicerContext) -> Any:
            started_s, code = perf_counter(), "UNKNOWN"  # gRPC's status for any other exception
            try:
                reply = await answer(request, context)
                code = "OK"
                return reply
            except grpc.aio.AbortError:
                code = _code_of(context)
                raise
            except asyncio.CancelledError:  # the client disconnected, or its deadline passed
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
    return str(getattr(code, "name", code))  # an int until the call ends, in some releases
