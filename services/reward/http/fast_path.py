"""The fast path from a connection to the POST endpoints, below ASGI.

Design: uvicorn's own protocol parses, keeps connections alive and shuts down; requests to the POST
endpoints leave it as soon as their headers are read, and are answered without an ASGI scope, its
messages and its events, which together cost more than all of our own reading and writing. Whatever
is in the least unusual (a query string, ``Expect``, HTTP/1.0) takes the ASGI path, which
gives the same replies. The price is reliance on how uvicorn's protocol names its parts, and so a bound on
its version in ``pyproject.toml``; the endpoint's tests run over both paths.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from forethought.errors import Overloaded
from forethought.telemetry.connection import BoundedProtocol, Bounds
from services.reward.http.server import HttpReply, RewardApp
from services.reward.metrics import CLIENT_DISCONNECTED

_MAX_IGNORED = 2  # times the largest body, read and dropped after a refusal
_MAX_PIPELINED = 16  # requests waiting for the first one's answer
_JSON_LENGTH = b"content-type: application/json\r\ncontent-length: "


class Exchange:
    """One request to a POST endpoint, from its headers to its reply.

    It stands where uvicorn keeps a ``RequestResponseCycle``, so the attributes that uvicorn's
    protocol reads and writes there have its names.
    """

    __slots__ = (
        "_app",
        "_body",
        "_is_turn",
        "_num_bytes",
        "_num_held",
        "_path",
        "_protocol",
        "_refusal",
        "_started_s",
        "_task",
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
    )

    def __init__(
        self, protocol: RewardProtocol, app: RewardApp, path: str, keep_alive: bool
    ) -> None:
        self._started_s = perf_counter()
        self._protocol, self._app, self._path = protocol, app, path
        self._refusal: HttpReply | None = None
        self._body: list[bytes] = []
        self._num_bytes = self._num_held = 0  # of the body: received, and counted as memory
        self._is_turn = False
        self._task: asyncio.Task[None] | None = None
        self.keep_alive = keep_alive
        self.message_event = protocol.unheard
        self.more_body = True
        self.response_complete = False
        self.disconnected = False

    def feed(self, chunk: bytes) -> None:
        """Take a part of the body; after a refusal drop it, up to a limit."""
        self._num_bytes += len(chunk)
        if not self.more_body:
            if self.response_complete and self._num_bytes > _MAX_IGNORED * self._app.max_body_bytes:
                self._protocol.transport.close()
        elif self._num_bytes > self._app.max_body_bytes:
            self.refuse(self._app.too_large())
        else:
            self._keep(chunk)

    def _keep(self, chunk: bytes) -> None:
        try:
            self._app.memory.take(len(chunk), self._num_held)
        except Overloaded as error:
            self.refuse(self._app.refusal(error))
        else:
            self._body.append(chunk)
            self._num_held += len(chunk)

    def _release(self) -> None:
        """Forget the body; its memory is counted no longer."""
        self._app.memory.release(self._num_held)
        self._num_held, self._body = 0, []

    def refuse(self, refusal: HttpReply) -> None:
        """Reply at once, without the rest of the body, which the client may keep sending."""
        self._release()
        self._refusal = refusal
        self.end()

    def end(self) -> None:
        """The body is complete, or complete enough."""
        self.more_body = False
        self._begin()

    def take_turn(self) -> None:
        """The connection's earlier requests have been answered."""
        self._is_turn = True
        self._protocol.in_hand = self
        self._begin()

    def on_disconnect(self) -> None:
        """The client is gone: remove its work from the queue."""
        self.disconnected = True
        if self._task is not None:
            self._task.cancel()
        else:
            self._release()

    def _begin(self) -> None:
        if self._is_turn and not self.more_body and self._task is None:
            self._task = self._protocol.spawn(self._answer())

    async def _answer(self) -> None:
        status = CLIENT_DISCONNECTED
        try:
            body = b"".join(self._body)
            answer = self._refusal or await self._app.answer(self._path, body)
            if self.disconnected:
                return
            await self._protocol.write(answer, self.keep_alive)
            status = answer.status
            self.response_complete = True
            self._protocol.on_response_complete()
        finally:
            self._release()
            self._app.seconds.observe(self._path, status, perf_counter() - self._started_s)


class RewardProtocol(BoundedProtocol):
    """uvicorn's connection with the fast path; its application has to be a :class:`RewardApp`.

    Example:
        ``EmbeddedHttpServer(app, "127.0.0.1", 8080, protocol=RewardProtocol)``
    """

    def __init__(self, bounds: Bounds, **kwargs: Any) -> None:
        super().__init__(bounds, **kwargs)
        app = self.config.app
        assert isinstance(app, RewardApp)
        self._reward_app = app
        self._fast_paths = {path.encode(): path for path in app.paths}
        self.in_hand: Exchange | None = None  # the one whose turn came last
        self.unheard = asyncio.Event()  # uvicorn sets every cycle's event; this one is not awaited

    def take_request(self) -> None:
        """Take the fast path for an ordinary POST to one of our endpoints."""
        path = self._fast_paths.get(self.url)
        if path is None or not self._is_ordinary_post():
            super().take_request()
            return
        earlier = self.cycle
        exchange = Exchange(self, self._reward_app, path, self.parser.should_keep_alive())
        self.cycle = exchange
        if refusal := self._reward_app.admit(self.headers):
            exchange.refuse(refusal)
        if earlier is None or earlier.response_complete:
            exchange.take_turn()
        else:
            waiting: deque[Any] = self.pipeline
            waiting.appendleft((exchange, self.app))
            if len(self.pipeline) > _MAX_PIPELINED:  # while paused, a disconnect is not noticed
                self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A part of the newest request's body."""
        if type(self.cycle) is Exchange:
            self._num_head_bytes = 0
            self.cycle.feed(body)
        else:
            super().on_body(body)

    def end_request(self) -> None:
        """The newest request has been read."""
        if type(self.cycle) is not Exchange:
            super().end_request()
        elif self.cycle.more_body:  # else already refused
            self.cycle.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the client's requests."""
        super().connection_lost(exc)
        for exchange in (self.in_hand, self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if type(exchange) is Exchange:
                exchange.on_disconnect()
        self.pipeline.clear()

    def spawn(self, answering: Any) -> asyncio.Task[None]:
        """Answer a request in one of the server's tasks, which a shutdown waits for."""
        task: asyncio.Task[None] = self.loop.create_task(answering)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def write(self, answer: HttpReply, keep_alive: bool) -> None:
        """Send a whole reply, once the connection accepts more."""
        if self.flow.write_paused:
            await self.flow.drain()
        parts = [STATUS_LINE[answer.status], _JSON_LENGTH, b"%d\r\n" % len(answer.content)]
        for name, value in (*self.server_state.default_headers, *answer.headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n" if keep_alive else b"connection: close\r\n\r\n", answer.content)
        self.transport.write(b"".join(parts))
        if not keep_alive:
            self.transport.close()

    def _is_ordinary_post(self) -> bool:
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and not self.expect_100_continue
        )
