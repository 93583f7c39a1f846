"""One HTTP connection within bounds: of its heads, of the time they take, of the number of connections.

Design: uvicorn's protocol for httptools, which has none of these bounds, with them added. A head may have
64 KiB and ten seconds; a body has to keep arriving; past the limit on connections the one that has waited
longest without a request makes room, so that a flood of idle ones does not keep out a probe. A client that
does not take its replies is disconnected, because they are memory. What cannot
be read is refused after the answers to earlier requests, and the connection is closed. The offer of another
protocol (``Upgrade``) is ignored, as RFC 9110 permits: httptools stops at its head, and the body was then
read as another request; a parser in its place reads on, from the same head without the offer. The price is
reliance on the names of uvicorn's parts, hence a bound on its version in ``pyproject.toml``.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_MAX_CONNECTIONS = 4096
_NUM_FREE_CHUNKS = 4096  # of a body, whatever their size
_MIN_CHUNK_BYTES = 64  # of further ones on average: a chunk costs time and memory of its own


@dataclass(slots=True)
class Bounds:
    """The bounds of one server's connections.

    A request that has not arrived is looked at every ``tick_s``; it is refused at the second look in its
    head, or at the second in a row that finds fewer than ``min_tick_bytes`` more of its body. A reply has
    to be taken, down to what the connection buffers, within ``reply_s``.

    Example:
        ``Bounds(max_connections=128)``
    """

    max_connections: int = _MAX_CONNECTIONS
    max_head_bytes: int = 64 << 10
    tick_s: float = 5.0
    min_tick_bytes: int = 4096
    reply_s: float = 60.0
    idle: dict[BoundedProtocol, None] = field(default_factory=dict)
    """The connections without a complete request, by when they became so."""

    def __post_init__(self) -> None:
        """Leave half of the files that this process may open to the rest of it."""
        max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if max_files != resource.RLIM_INFINITY:
            self.max_connections = min(self.max_connections, max(max_files // 2, 1))


class _Unreadable(Exception):
    """A request that the parser accepts and the bounds do not."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Refusal:
    """The last answer of a connection. It stands where uvicorn keeps a request's cycle."""

    def __init__(self, protocol: BoundedProtocol, status: int, message: str) -> None:
        self._protocol, self._status, self._message = protocol, status, message.encode()
        self.message_event = asyncio.Event()
        self.disconnected = self.response_complete = self.keep_alive = self.more_body = False

    def take_turn(self) -> None:
        """The connection's earlier requests have been answered."""
        head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        length = b"content-length: %d\r\n\r\n" % len(self._message)
        self._protocol.transport.write(STATUS_LINE[self._status] + head + length + self._message)
        self._protocol.transport.close()
        self.response_complete = True


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's connection within ``bounds``, which all connections of a server share."""

    cycle: Any  # a RequestResponseCycle, or what takes turns with it
    pipeline: Any

    def __init__(self, bounds: Bounds, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bounds = bounds
        self._timer: asyncio.TimerHandle | None = None
        self._reply_timer: asyncio.TimerHandle | None = None
        self._num_ticks = 0  # since the request made progress
        self._num_bytes = self._num_bytes_at_tick = 0
        self._num_bytes_before = self._num_bytes_at_head = 0  # this read; the read of the last head
        self._num_chunks = self._num_bytes_at_body = 0
        self._num_head_bytes = 0  # read without reaching the end of a head or a part of a body
        self._is_complete = self._is_begun = self._is_in_body = self._is_refused = False

    def connection_made(self, transport: Any) -> None:
        """Make room for the connection, or refuse it; its first head is expected in time."""
        is_full = len(self.connections) >= self._bounds.max_connections
        super().connection_made(transport)
        if is_full and not self._bounds.idle:
            self.refuse(503, "too many connections; expected fewer; try again later")
            return
        if is_full:
            next(iter(self._bounds.idle)).abort()
        self._bounds.idle[self] = None
        self._watch()

    def abort(self) -> None:
        """Make room for another connection."""
        self._bounds.idle.pop(self, None)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._end_reply_timer()
        self._bounds.idle.pop(self, None)
        self._unwatch()

    def pause_writing(self) -> None:
        """The client takes a reply more slowly than it is written."""
        super().pause_writing()
        self._end_reply_timer()
        self._reply_timer = self.loop.call_later(self._bounds.reply_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        self._end_reply_timer()

    def _end_reply_timer(self) -> None:
        if self._reply_timer is not None:
            self._reply_timer.cancel()
            self._reply_timer = None

    def data_received(self, data: bytes) -> None:
        """Read on; uvicorn's own method, with the bounds."""
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._is_complete = False
        self._num_bytes_before = self._num_bytes
        self._num_bytes += len(data)
        self._num_head_bytes += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_on(data, upgrade.args[0])
            if self._num_head_bytes > self._bounds.max_head_bytes:
                raise self._too_long()
        except _Unreadable as error:
            self.refuse(error.status, str(error))
        except httptools.HttpParserError as error:
            ours = error.__context__
            if isinstance(ours, _Unreadable):
                self.refuse(ours.status, str(ours))
            else:
                self.refuse(400, "not valid HTTP")
        else:
            if not self._is_complete and self._timer is None:
                self._watch()

    def refuse(self, status: int, message: str) -> None:
        """Answer earlier requests, then this one with ``status``, and close; read no further."""
        self._is_refused = True
        self._unwatch()
        cycle, refusal = self.cycle, Refusal(self, status, message)
        is_answered = cycle is None or cycle.response_complete
        if self._is_in_body and is_answered:
            self.transport.close()
        elif self._is_in_body and not self.pipeline and not cycle.more_body:
            cycle.keep_alive = False  # its answer is on its way
        elif is_answered or (self._is_in_body and not self.pipeline):
            refusal.take_turn()
        else:
            if self._is_in_body:
                self.pipeline.popleft()
            self.pipeline.appendleft((refusal, self.app))
            self.cycle = refusal

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_begun, self._is_complete = True, False

    def on_headers_complete(self) -> None:
        """The end of a head; with an offer to upgrade, it will be read again without."""
        if self.parser.should_upgrade():
            return
        if self._num_bytes - self._num_bytes_at_head > self._bounds.max_head_bytes:
            self._check_head()
        self._num_bytes_at_head = self._num_bytes_before
        self._num_head_bytes = self._num_ticks = self._num_chunks = 0
        self._num_bytes_at_body = self._num_bytes_before
        self.take_request()
        self._is_in_body = True

    def take_request(self) -> None:
        """A request whose head has been read."""
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """The size of a chunk of the newest request's body, or of its end."""
        self._num_chunks += 1
        num_bytes = self._num_bytes - self._num_bytes_at_body
        if self._num_chunks > _NUM_FREE_CHUNKS + num_bytes // _MIN_CHUNK_BYTES:
            raise _Unreadable(
                400,
                f"got {self._num_chunks} chunks; expected at least {_MIN_CHUNK_BYTES} bytes in each on "
                "average; send larger ones, or the body whole with its content-length",
            )

    def on_body(self, body: bytes) -> None:
        """A part of the newest request's body."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The newest request has been read."""
        if not self._is_in_body:  # an offer to upgrade
            return
        self.end_request()
        self._num_head_bytes = self._num_ticks = 0
        self._is_complete, self._is_begun, self._is_in_body = True, False, False
        if not self.cycle.response_complete:
            self._bounds.idle.pop(self, None)
        if self._timer is not None:
            self._unwatch()

    def end_request(self) -> None:
        """The newest request has been read."""
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request that has been read, or wait for one."""
        if not self.pipeline:
            self._bounds.idle.pop(self, None)  # to the end of the queue
            self._bounds.idle[self] = None
        super().on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, RequestResponseCycle):
            super()._start_asgi_task(cycle, app)
        else:
            cycle.take_turn()

    def _read_on(self, data: bytes, start: int) -> None:
        rest = memoryview(data)
        while True:
            rest = rest[start:]
            self._read_again_without_upgrade()
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                start = upgrade.args[0]

    def _read_again_without_upgrade(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this is no proxy")
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join((*lines, b"", b"")))

    def _check_head(self) -> None:
        """The head may be shorter than what was read with it."""
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self._bounds.max_head_bytes:
            raise self._too_long()

    def _too_long(self) -> _Unreadable:
        return _Unreadable(431, f"expected a head of at most {self._bounds.max_head_bytes} bytes")

    def _watch(self) -> None:
        self._num_bytes_at_tick = self._num_bytes
        self._timer = self.loop.call_later(self._bounds.tick_s, self._tick)

    def _unwatch(self) -> None:
        self._num_ticks = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        """Look at a request that has not arrived. Once is not enough: the loop may have been blocked."""
        num_new = self._num_bytes - self._num_bytes_at_tick
        if not self.flow.read_paused:
            is_arriving = self._is_in_body and num_new >= self._bounds.min_tick_bytes
            self._num_ticks = 0 if is_arriving else self._num_ticks + 1
        if self._num_ticks < 2:
            self._watch()
        elif self._is_begun:
            self.refuse(408, "the request did not arrive in time; send it again")
        else:
            self._unwatch()
            self.transport.close()
