"""The ops port: health and metrics over plain HTTP, in the event loop that does the work.

Design: the port requires no credential, so it exposes nothing that needs one: three read-only pages.
It shares the process's event loop, so ``/healthz`` also proves that the loop is running. The price
is that a loop blocked by a long step answers probes late; probe timeouts must allow for that.

uvicorn's own ``serve()`` takes over SIGTERM and SIGINT of the embedding process. Here its public phases
(``startup``, ``main_loop``, ``shutdown``) are called instead, which install no signal handlers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from forethought.errors import InvalidInput
from forethought.telemetry.connection import BoundedProtocol, Bounds

_MAX_OPS_CONNECTIONS = 128


class EmbeddedHttpServer:
    """Serves one ASGI application from the running event loop, without touching signals.

    Nothing runs before :meth:`start`. Also used by the reward service's HTTP server, which passes its
    own ``protocol`` for uvicorn's connections. ``bounds`` are those of this server's connections.

    Example:
        ``server = EmbeddedHttpServer(app, "127.0.0.1", 0); await server.start(); server.port``
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        protocol: type[BoundedProtocol] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=partial(protocol or BoundedProtocol, bounds or Bounds()),  # type: ignore[arg-type]
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        self._socket: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; ``port`` is the bound port when this returns.

        Raises:
            InvalidInput: cannot listen on the address.
        """
        self._socket = _listen(self.host, self.port)
        self.port = int(self._socket.getsockname()[1])
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._socket])
        self._serving = asyncio.create_task(self._server.main_loop(), name=f"http:{self.port}")

    async def stop(self) -> None:
        """Refuse new connections and let in-flight requests finish (5 s at most); idempotent."""
        if self._serving is None or self._socket is None:
            return
        self._server.should_exit = True
        await self._serving
        await self._server.shutdown(sockets=[self._socket])
        self._serving = None


class OpsServer(EmbeddedHttpServer):
    """``/healthz`` (alive), ``/readyz`` (503 until ``ready()``), ``/metrics`` (Prometheus text).

    ``describe()`` is shown on ``/readyz``; it may hold a "reason" for not being ready.

    Example:
        ``OpsServer("0.0.0.0", 9100, lambda: bool(receiver.holding), describe, registry)``
    """

    def __init__(
        self,
        host: str,
        port: int,
        ready: Callable[[], bool],
        describe: Callable[[], Mapping[str, object]],
        registry: CollectorRegistry,
        bounds: Bounds | None = None,
    ) -> None:
        async def healthz(request: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def readyz(request: Request) -> Response:
            if ready():
                return JSONResponse({"ready": True, **describe()})
            reason = {"reason": "no verified weights are being served yet"}
            return JSONResponse({"ready": False, **reason, **describe()}, status_code=503)

        async def metrics(request: Request) -> Response:
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        pages = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
        app = Starlette(routes=[Route(*page) for page in pages.items()])
        super().__init__(app, host, port, bounds=bounds or Bounds(_MAX_OPS_CONNECTIONS))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidInput(
            f"cannot listen for HTTP on {host!r} port {port} ({error.strerror or error}); expected "
            "an address of this machine and a free port; set the port to 0 to let the OS choose one"
        ) from error
