"""The guard before every gRPC method, whatever servicers a server has.

Design: an interceptor, so that a servicer added later is closed without knowing of tokens: what is
not named below needs the run's. It decides by a call's headers alone, before a message is read; a
refused call is answered by a handler that is given the requests as a stream and reads none, which fits
all four kinds of method because they look the same on the wire. A method that does not exist is
UNIMPLEMENTED to everyone: names that a stranger makes up never reach what counts calls.

Health stays open, for probes that hold no secret. Reflection asks for a token: it tells what is served.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from forethought.auth.guard import Guard, Role
from forethought.errors import Forbidden, Unauthenticated
from forethought.rpc.errors import errors_as_status

_OPEN = frozenset({"grpc.health.v1.Health"})
_ASKING = frozenset(
    {
        "forethought.wire.v1.Reward",
        "forethought.wire.v1.Rollouts",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)


class GrpcGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks a guard about every call but health checks.

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
        """The method's own handler, or one that refuses with UNAUTHENTICATED or PERMISSION_DENIED."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.lstrip("/").partition("/")[0]
        if handler is None or service in _OPEN:
            return handler
        needed = Role.CLIENT if service in _ASKING else Role.RUN
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
