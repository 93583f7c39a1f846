"""What every client does: open a transport, send requests within a deadline, close.

Design: one class for blocking and one for asyncio, which the clients of the services derive from and add
their methods to. A blocking client is no wrapper around the other: it works inside a running event loop and
in any number of threads. The price is that every method's signature is written twice.
"""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Self

from forethought.auth import Bearer
from forethought.clients.connect import async_transport_of, transport_of
from forethought.clients.retrying import R, Request, Retries, send, send_async


class Client:
    """Blocking client of one service; thread-safe.

    Args:
        url: ``grpc://host:port``; ``http://…`` and ``https://…`` where the service speaks HTTP.
        token: the bearer token; "" for none. Default: FORETHOUGHT_AUTH_TOKEN, …_TOKEN_FILE,
            …_CLIENT_TOKEN or …_CLIENT_TOKEN_FILE of the environment.
        timeout_s: deadline of a call, including all attempts and waits.
        retries: how often a call is attempted.
    """

    service: ClassVar[str]

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
    ) -> None:
        self._transport = transport_of(url, self.service, Bearer.of_client(token))
        self._timeout_s, self._retries = timeout_s, retries or Retries()

    def close(self) -> None:
        """Release the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, request: Request[R], timeout_s: float | None) -> R:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return send(self._transport, request, timeout_s, self._retries)


class AsyncClient:
    """:class:`Client` for asyncio: one event loop, any number of concurrent calls.

    Cancelling a call removes its work from the server's queue.
    """

    service: ClassVar[str]

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
    ) -> None:
        self._transport = async_transport_of(url, self.service, Bearer.of_client(token))
        self._timeout_s, self._retries = timeout_s, retries or Retries()

    async def close(self) -> None:
        """Release the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(self, request: Request[R], timeout_s: float | None) -> R:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await send_async(self._transport, request, timeout_s, self._retries)
