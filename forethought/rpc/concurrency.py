"""A limit on the concurrent calls of each service of a server.

Design: every service has a number of its own, so that neither pushes of weights nor health checks wait for,
or are refused because of, the calls of clients. A call counts from before its message is read, which is
what makes the limit one on memory; for that, a unary request is received here as a stream of one. A call
beyond the limit is refused before its message is read. The price is that a client's bursts are refused
rather than queued, as by every other limit of this server; clients retry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any

import grpc

from forethought.errors import Overloaded
from forethought.rpc.errors import errors_as_status


class CallLimit(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """At most ``max_calls`` calls of one service at a time.

    Example:
        ``await start_grpc_server(servicers, host, port, max_concurrent_calls=256)``
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._num_calls: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: Any
    ) -> Any:
        """The handler of a call, counted while it runs."""
        handler = await continuation(details)
        if handler is None:  # the method does not exist
            return None
        _, service, _ = details.method.split("/")
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        answer = self._streaming if handler.response_streaming else self._unary
        return make(
            answer(handler, service), handler.request_deserializer, handler.response_serializer
        )

    def _unary(self, handler: Any, service: str) -> Callable[..., Awaitable[Any]]:
        async def answer(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
            async with errors_as_status(context):
                self._check(service)
            with self._counted(service):
                if handler.request_streaming:
                    return await handler.stream_unary(messages, context)
                return await handler.unary_unary(await anext(messages), context)

        return answer

    def _streaming(self, handler: Any, service: str) -> Callable[..., Awaitable[None]]:
        async def answer(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
            async with errors_as_status(context):
                self._check(service)
            with self._counted(service):
                if handler.request_streaming:
                    replies = handler.stream_stream(messages, context)
                else:
                    replies = handler.unary_stream(await anext(messages), context)
                if isawaitable(replies):  # it writes its replies itself
                    await replies
                    return
                async for reply in replies:
                    await context.write(reply)

        return answer

    def _check(self, service: str) -> None:
        if self._num_calls[service] >= self._max_calls:
            raise Overloaded(
                f"{self._num_calls[service]} calls of {service} are in progress; expected at most "
                f"{self._max_calls}; retry later"
            )

    @contextmanager
    def _counted(self, service: str) -> Iterator[None]:
        self._num_calls[service] += 1
        try:
            yield
        finally:
            self._num_calls[service] -= 1
