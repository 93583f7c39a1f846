"""The gRPC server of a replica: its servicers, health and reflection on one port.

Design: what a caller sends is bounded before it is read: the bytes of a message (also of a compressed one,
once it is decompressed), the calls of a service at a time, the streams of a connection, the time to open
one. A message has room for a chunk of a weight push. Replies are bounded by what the servicers accept. The
price is that a larger message is refused by gRPC itself, whose text does not name the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from forethought.errors import InvalidInput
from forethought.rpc.concurrency import CallLimit

_SERVER_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # fail on a port in use instead of silently sharing it
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
)
MAX_MESSAGE_BYTES = 8 << 20
MAX_CONCURRENT_CALLS = 256


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
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    max_concurrent_calls: int = MAX_CONCURRENT_CALLS,
) -> GrpcServer:
    """Serve ``servicers``, gRPC health and reflection on ``host:port`` (0: any free port).

    Health reports NOT_SERVING until :meth:`GrpcServer.set_ready`. ``interceptors`` see every call,
    including health checks. A larger message than ``max_message_bytes`` and more than
    ``max_concurrent_calls`` of one service are refused with RESOURCE_EXHAUSTED.

    Raises:
        InvalidInput: cannot listen on the address.
    """
    # Imported here: one of the slower imports, and only servers reflect.
    from grpc_reflection.v1alpha import reflection

    options = (
        *_SERVER_OPTIONS,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", 2 * max_concurrent_calls),
    )
    limit = CallLimit(max_concurrent_calls)
    server = grpc.aio.server(options=options, interceptors=(*interceptors, limit))
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
