"""Requests over HTTP, with httpx2.

Design: connections are kept and not limited in number, because a caller's own concurrency is the limit
it chose. httpx2 bounds each phase of a call (connect, write, read), so a blocking call whose server
dribbles its answer may outlive its deadline; the async one may not. The environment's proxies are used
for public hosts only: a service in this network is not behind one, and a proxy would see its token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from forethought.auth import Bearer
from forethought.clients.retrying import AttemptFailed, Request
from forethought.errors import (
    ForethoughtError,
    InvalidInput,
    Unreachable,
    error_of_http,
    is_known_http,
)

_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
_INTERNAL_NAMES = (".localhost", ".local", ".internal", ".svc")  # of mDNS, clouds, Kubernetes
_NO_PROXIES: dict[str, None] = {"http://": None, "https://": None, "all://": None}
_MAY_PASS = (429, 503)


class HttpTransport:
    """Sends requests to the service at a base URL, blocking; thread-safe."""

    def __init__(self, url: str, bearer: Bearer) -> None:
        self._url, self._bearer = url, bearer
        self._client = httpx2.Client(base_url=url, limits=_LIMITS, mounts=_mounts(url))

    def attempt(self, request: Request[Any], timeout_s: float) -> Any:
        """One attempt."""
        with _failures_as_refusals(self._url, timeout_s):
            built = _http_request(self._client, request, timeout_s, self._bearer)
            response = self._client.send(built)
        return _reply(self._url, response)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """Sends requests to the service at a base URL from one event loop."""

    def __init__(self, url: str, bearer: Bearer) -> None:
        self._url, self._bearer = url, bearer
        self._client = httpx2.AsyncClient(base_url=url, limits=_LIMITS, mounts=_mounts(url))

    async def attempt(self, request: Request[Any], timeout_s: float) -> Any:
        """One attempt."""
        with _failures_as_refusals(self._url, timeout_s):
            async with asyncio.timeout(timeout_s):
                built = _http_request(self._client, request, timeout_s, self._bearer)
                response = await self._client.send(built)
        return _reply(self._url, response)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _mounts(url: str) -> dict[str, None]:
    """What replaces the environment's proxies: nothing for a public host, no proxy for another."""
    return _NO_PROXIES if _is_internal(urlsplit(url).hostname or "") else {}


def _is_internal(host: str) -> bool:
    """Whether a host is this machine, a private address, or a name that only its own network knows."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.rstrip(".").endswith(_INTERNAL_NAMES)


def _http_request(
    client: httpx2.Client | httpx2.AsyncClient,
    request: Request[Any],
    timeout_s: float,
    bearer: Bearer,
) -> httpx2.Request:
    headers = list(bearer.header())
    if request.body is None:
        return client.build_request("GET", request.path, headers=headers, timeout=timeout_s)
    try:
        content = json.dumps(request.body, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AttemptFailed(
            InvalidInput(
                f"the request cannot be encoded as JSON: {error}; expected texts, lists of ids "
                "and finite numbers; turn arrays into lists"
            )
        ) from error
    return client.build_request(
        "POST",
        request.path,
        content=content,
        headers=[("content-type", "application/json"), *headers],
        timeout=timeout_s,
    )


@contextmanager
def _failures_as_refusals(url: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except (httpx2.TimeoutException, TimeoutError) as error:
        raise AttemptFailed(
            Unreachable(f"{url} gave no answer within {timeout_s:.3g} s; raise timeout_s")
        ) from error
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        raise AttemptFailed(
            Unreachable(f"cannot reach {url}: {reason}; is the service running there?"), True
        ) from error


def _reply(url: str, response: httpx2.Response) -> Any:
    """The JSON of a 200; everything else is a refusal."""
    try:
        reply = response.json()
    except ValueError as error:
        if is_known_http(response.status_code):
            raise _refusal(response, f"{url} answered {response.status_code}") from error
        raise AttemptFailed(
            ForethoughtError(
                f"{url} answered {response.status_code} with something else than JSON; expected a "
                "Forethought service; correct the url"
            )
        ) from error
    if response.status_code != 200:
        raise _refusal(response, _message(reply) or f"{url} answered {response.status_code}")
    return reply


def _refusal(response: httpx2.Response, message: str) -> AttemptFailed:
    status = response.status_code
    error = error_of_http(status, message, wait_s := _retry_after_s(response))
    return AttemptFailed(error, status in _MAY_PASS, wait_s)


def _message(reply: Any) -> str:
    error = reply.get("error") if isinstance(reply, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""


def _retry_after_s(response: httpx2.Response) -> float:
    """Retry-After in seconds, which may also be given as a date; 0 where there is none."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
