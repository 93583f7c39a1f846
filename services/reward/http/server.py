"""The HTTP endpoint of the reward service.

Design: a framework costs several times what reading a request costs, so the POST endpoints are
answered here, straight from ASGI (or from the connection itself, :mod:`services.reward.http.fast_path`),
and FastAPI answers everything else: /docs, OpenAPI, GET /v1/models, and what does not exist. Its
routes for the POST endpoints only document them. The price is that middleware of FastAPI does not
see those requests. Large bodies are decoded, and their replies encoded, in threads. Queueing and
computing belong to :mod:`services.reward.service`; when a client disconnects, its work is removed from the
queue.

Every path is closed but the pages that describe the service, so one added later is closed without knowing
of tokens; a token is asked for before a body is read. Nothing in a request reaches the filesystem or an
import: objectives are those that were loaded at start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import msgspec
from fastapi import FastAPI, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException

from forethought.auth import Guard, Role
from forethought.errors import (
    Forbidden,
    ForethoughtError,
    Overloaded,
    Status,
    TooLarge,
    Unauthenticated,
    status_of,
)
from services.reward.conversions import LARGE
from services.reward.http.bodies import arguments, score_request
from services.reward.http.docs_page import POLICY, docs_page
from services.reward.http.openapi import ENDPOINTS, Endpoint, bounded
from services.reward.limits import Limits
from services.reward.metrics import CLIENT_DISCONNECTED, HttpSeconds
from services.reward.replies import ErrorReply, ModelsReply
from services.reward.service import RewardService

log = logging.getLogger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
R = TypeVar("R")
Handler: TypeAlias = Callable[[bytes], Awaitable[Mapping[str, Any]]]

_WATCH_AFTER_S = 0.05  # slower requests are watched for a client that disconnects
_ENCODE = msgspec.json.Encoder().encode


class ClientDisconnected(Exception):
    """The client is gone, so no reply is sent."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Status, JSON body, and headers other than its type and length.

    Example:
        ``HttpReply(429, b'{"error": …}', ((b"retry-after", b"3"),))``
    """

    status: int
    content: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class RewardApp:
    """The ASGI application that serves ``POST /v1/score, logprobs, match, entropy``, ``GET
    /v1/models`` and ``/docs``.

    Example:
        ``EmbeddedHttpServer(RewardApp(service, 8 << 20, guard), "127.0.0.1", 8080)``
    """

    def __init__(self, service: RewardService, max_body_bytes: int, guard: Guard) -> None:
        self.max_body_bytes = max_body_bytes
        self.seconds = HttpSeconds()
        self.memory = service.memory
        self._guard, self._service = guard, service
        self._framework = _framework(service)
        self._handlers: dict[str, Handler] = {
            "/v1/score": self._score,
            "/v1/logprobs": self._logprobs,
            "/v1/match": self._match,
            "/v1/entropy": self._entropy,
        }

    @property
    def paths(self) -> Collection[str]:
        """The paths that :meth:`answer` serves by POST."""
        return self._handlers.keys()

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> HttpReply | None:
        """The refusal of a client without a valid token, else None. Call it before reading a body."""
        if self._guard.is_open:
            return None
        try:
            self._guard.check(authorization(headers), Role.CLIENT)
        except (Unauthenticated, Forbidden) as error:
            return self.refusal(error)
        return None

    async def answer(self, path: str, body: bytes) -> HttpReply:
        """The reply to a POST to one of ``paths``; errors are replies too. May be cancelled."""
        try:
            reply = await self._handlers[path](body)
            if len(body) < LARGE:
                return HttpReply(200, _ENCODE(reply))
            return HttpReply(200, await self._service.conversions.run(len(body), _ENCODE, reply))
        except Exception as error:
            if not isinstance(error, ForethoughtError):
                log.exception("POST %s failed", path)
            return self.refusal(error)

    def refusal(self, error: Exception) -> HttpReply:
        """The reply that reports an error."""
        status = status_of(error)
        return HttpReply(status.http_status, _ENCODE(_error_body(status)), tuple(_headers(error)))

    def too_large(self) -> HttpReply:
        """The reply to a body over the limit."""
        return self.refusal(
            TooLarge(
                f"the body has more than {self.max_body_bytes} bytes; expected at most that many; "
                "send it in several requests, or raise reward.max_body_bytes"
            )
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        started_s, status = perf_counter(), CLIENT_DISCONNECTED

        def noting(message: Message) -> Awaitable[None]:
            nonlocal status
            status = message.get("status", status)
            return send(message)

        try:
            await self._respond(scope, receive, noting)
        finally:
            self.seconds.observe(scope["path"], status, perf_counter() - started_s)

    async def _respond(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in OPEN_PATHS and (refusal := self.admit(scope["headers"])):
            await _send(send, refusal)
        elif scope["method"] == "POST" and path in self._handlers:
            try:
                await _send(send, await self._answer_to(path, receive))
            except ClientDisconnected:
                return
        else:
            await self._framework(scope, receive, send)

    async def _answer_to(self, path: str, receive: Receive) -> HttpReply:
        chunks: list[bytes] = []
        try:
            if refusal := await self._read_body(receive, chunks):
                return refusal
            return await _unless_disconnected(self.answer(path, b"".join(chunks)), receive)
        finally:
            self.memory.release(sum(map(len, chunks)))

    async def _read_body(self, receive: Receive, chunks: list[bytes]) -> HttpReply | None:
        """Read a body into ``chunks``, each of which is counted; the refusal if it is too much."""
        num_bytes, more_body = 0, True
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk, more_body = message.get("body", b""), message.get("more_body", False)
            num_bytes += len(chunk)
            if num_bytes > self.max_body_bytes:
                return self.too_large()
            try:
                self.memory.take(len(chunk), num_bytes - len(chunk))
            except Overloaded as error:
                return self.refusal(error)
            chunks.append(chunk)
        return None

    async def _read(self, read: Callable[..., R], body: bytes, *args: Any) -> R:
        """Decode a body, in a thread if it is large."""
        service = self._service
        return await service.conversions.run(len(body), read, body, *args, service.limits)

    async def _score(self, body: bytes) -> Mapping[str, Any]:
        if len(body) < LARGE:  # the hot path: a coroutine costs as much as reading the request
            request = score_request(body, self._service.limits)
        else:
            request = await self._read(score_request, body)
        return await self._service.score(*request, num_body_bytes=len(body))

    async def _logprobs(self, body: bytes) -> Mapping[str, Any]:
        given = await self._read(arguments, body, "/v1/logprobs")
        return await self._service.logprobs(**{"model": "policy"} | given)

    async def _match(self, body: bytes) -> Mapping[str, Any]:
        return await self._service.match(**await self._read(arguments, body, "/v1/match"))

    async def _entropy(self, body: bytes) -> Mapping[str, Any]:
        return await self._service.entropy(**await self._read(arguments, body, "/v1/entropy"))


def _headers(error: Exception) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(error, Overloaded):
        yield b"retry-after", b"%d" % error.retry_after_s
    if isinstance(error, Unauthenticated):
        yield b"www-authenticate", b"Bearer"


async def _unless_disconnected(answer: Awaitable[HttpReply], receive: Receive) -> HttpReply:
    """The reply. If the client disconnects first: cancel its work, raise ClientDisconnected."""
    asking = asyncio.current_task()
    assert asking is not None
    watch = _Watch(asking, receive)
    begin = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, watch.begin)
    try:
        return await answer
    except asyncio.CancelledError:
        if not watch.is_gone:
            raise
        asking.uncancel()
        raise ClientDisconnected from None
    finally:
        begin.cancel()
        watch.end()


class _Watch:
    """Cancels a task when its client disconnects. Started late: it costs as much as reading a request."""

    def __init__(self, asking: asyncio.Task[Any], receive: Receive) -> None:
        self._asking, self._receive = asking, receive
        self._watching: asyncio.Task[None] | None = None
        self.is_gone = False

    def begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    def end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self._asking.cancel()


async def _send(send: Send, answer: HttpReply) -> None:
    length = (b"content-length", b"%d" % len(answer.content))
    headers = [(b"content-type", b"application/json"), length, *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.content})


def _error_body(status: Status) -> dict[str, Any]:
    return {"error": {"status": status.http_status, "message": status.message}}


def _framework(service: RewardService) -> FastAPI:
    """Everything but the POST endpoints, whose documentation it serves."""
    app = FastAPI(
        title="Forethought reward service",
        description="Rewards, log-probs, matches and entropies of thoughts.",
        dependencies=[DOCUMENTED],
        docs_url=None,
        redoc_url=None,
    )
    for kind in (ForethoughtError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)

    @app.get("/v1/models", summary="What is served", responses=_responses(ModelsReply, 401, 503))
    async def models() -> JSONResponse:
        """Policy and baseline with their versions, and the objectives that may be asked for."""
        return JSONResponse(service.models())

    for path, endpoint in ENDPOINTS.items():
        _document(app, path, endpoint, service.limits)
    for path in DOCS_PATHS:
        app.add_api_route(path, _docs, methods=["GET"], include_in_schema=False)
    return app


async def _docs(request: Request) -> HTMLResponse:
    page = docs_page(request.app.openapi(), str(request.base_url).rstrip("/"))
    return HTMLResponse(page, headers={"content-security-policy": POLICY})


def _document(app: FastAPI, path: str, endpoint: Endpoint, limits: Limits) -> None:
    schema = bounded(endpoint.schema, limits)
    content = {"application/json": {"schema": schema, "example": endpoint.example}}
    app.add_api_route(
        path,
        _answered_elsewhere,
        methods=["POST"],
        name=path,
        summary=endpoint.summary,
        description=endpoint.description,
        responses=_responses(endpoint.reply, 400, 401, 413, 429, 503),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


async def _answered_elsewhere() -> JSONResponse:
    raise AssertionError("RewardApp answers this path before FastAPI sees it")


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StarletteHTTPException):  # such as: no such path
        status = Status(error.status_code, "", f"{error.detail}; see /docs for what there is")
    else:
        status = status_of(error)
    return JSONResponse(_error_body(status), status.http_status)


def _responses(reply: type, *error_statuses: int | str) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {200: {"model": reply}}
    return responses | {status: {"model": ErrorReply} for status in error_statuses}


DOCS_PATHS = ("/docs", "/redoc")
OPEN_PATHS = frozenset({*DOCS_PATHS, "/openapi.json"})


DOCUMENTED = Security(
    HTTPBearer(
        scheme_name="token",
        description="The run's token or a client's. An open service requires none.",
        auto_error=False,  # the guard has decided before FastAPI sees a request
    )
)
"""A dependency that only documents the token in /openapi.json."""


def authorization(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The Authorization header of a request whose header names are in lower case."""
    for name, value in headers:
        if name == b"authorization":
            return str(value, "latin-1")
    return None
