"""The gRPC server of a replica: its servicers, health and reflection on one port.

Design: message sizes are unlimited in both directions, because the sender chooses the chunk size of a
weight push. The price is that each servicer must bound its own requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from forethought.errors import InvalidInput
from forethought.rpc.channel import MESSAGE_OPTIONS

_SERVER_OPTIONS = (
    *MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # fail on a port in use instead of silently sharing it
)


class Servicer(Protocol):
    """A service that :func:`start_grpc_server` can serve."""

    @property
    def service_name(self) -> str:
        """The full name of the service, as reflection shows it."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register this servicer with a server that has not started."""


@dataclass(frozen=True, slots=True)
class GrpcServer:
    """A started server, the port it is bound to, and its health.

    Example:
        ``GrpcServer(server, 50051, health_servicer)``
    """

    server: grpc.aio.Server
    port: int
    health: health.aio.HealthServicer

    async def set_ready(self, ready: bool) -> None:
        """Set the gRPC health status: SERVING while verified weights are being served."""
        status = health_pb2.HealthCheckResponse
        await self.health.set("", status.SERVING if ready else status.NOT_SERVING)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Report NOT_SERVING, reject new calls, and let in-flight ones finish within ``grace_s``."""
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


async def start_grpc_server(
    servicers: Sequence[Servicer],
    host: str,
    port: int,
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> GrpcServer:
    """Serve ``servicers``, gRPC health and reflection on ``host:port`` (0: any free port).

    Health reports NOT_SERVING until :meth:`GrpcServer.set_ready`. ``interceptors`` see every call,
    including health checks.

    Raises:
        InvalidInput: cannot listen on the address.
    """
    # Imported here: one of the slower imports, and only servers reflect.
    from grpc_reflection.v1alpha import reflection

    server = grpc.aio.server(options=_SERVER_OPTIONS, interceptors=tuple(interceptors))
    for servicer in servicers:
        servicer.add_to(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = [servicer.service_name for servicer in servicers]
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    started = GrpcServer(server, _bind(server, host, port), health_servicer)
    await started.set_ready(False)
    await server.start()
    return started


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    bracketed = f"[{host}]" if ":" in host else host
    try:
        bound_port = int(server.add_insecure_port(f"{bracketed}:{port}"))
    except RuntimeError as error:
        raise _cannot_listen(host, port) from error
    if not bound_port:  # how older releases of grpcio report it
        raise _cannot_listen(host, port)
    return bound_port


def _cannot_listen(host: str, port: int) -> InvalidInput:
    return InvalidInput(
        f"cannot listen for gRPC on {host!r} port {port}; expected an address of this machine and "
        "a free port; set grpc_port = 0 to let the OS choose one"
    )
