"""Authorization of every gRPC method, for all servicers of a server.

Design: an interceptor, so a servicer added later is protected without any code of its own: services not
listed below require the run token. It decides by a call's headers alone, before a message is read. A
rejected call gets a handler that takes the requests as a stream and reads none, which fits all four
kinds of method because they look the same on the wire. A method that does not exist is UNIMPLEMENTED
to everyone, so made-up method names never create call metrics.

Health stays open, for probes that hold no secret. Reflection requires a token: it reveals the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from forethought.auth.guard import Guard, Role
from forethought.errors import Forbidden, Unauthenticated
from forethought.rpc.errors import errors_as_status

_OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
_CLIENT_SERVICES = frozenset(
    {
        "forethought.wire.v1.Reward",
        "forethought.wire.v1.Rollouts",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)


class GrpcGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Checks every call except health checks with a :class:`Guard`.

    Example:
        ``await start_grpc_server(servicers, host, port, interceptors=[GrpcGuard(guard)])``
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler, or one that aborts with UNAUTHENTICATED or PERMISSION_DENIED."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.lstrip("/").partition("/")[0]
        if handler is None or service in _OPEN_SERVICES:
            return handler
        needed = Role.CLIENT if service in _CLIENT_SERVICES else Role.RUN
        try:
            self._guard.check(_authorization(handler_call_details), needed)
        except (Unauthenticated, Forbidden) as error:
            return _refusing_with(error)
        return handler


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    for name, value in details.invocation_metadata or ():
        if name == "authorization":
            return str(value)
    return None


def _refusing_with(error: Unauthenticated | Forbidden) -> grpc.RpcMethodHandler:
    async def refuse(unread: Any, context: grpc.aio.ServicerContext) -> None:
        async with errors_as_status(context):
            raise error

    return grpc.stream_unary_rpc_method_handler(refuse)
