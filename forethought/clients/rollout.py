"""Clients that sample thoughts from a rollout replica.

Design: a request is a prefix (or a context with its prompting), the sampling parameters and a seed; the
same request gives the same thoughts under the same weights, so it can be retried after a failure. A caller
that needs at least some version sets ``min_version``, and the call waits, within its deadline, until the
replica serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from forethought.auth import Bearer
from forethought.clients.connect import async_transport_of, transport_of
from forethought.clients.retrying import Call, Retries, call, call_async
from forethought.clients.rollout_calls import Generated, GenerateRequest
from forethought.types import Prompting, Sampling


class RolloutClient:
    """Blocking client of one rollout replica; thread-safe.

    Args:
        url: ``grpc://host:port``.
        token: the bearer token; "" for none. Default: FORETHOUGHT_AUTH_TOKEN, …_TOKEN_FILE,
            …_CLIENT_TOKEN or …_CLIENT_TOKEN_FILE of the environment.
        timeout_s: deadline of a call, including all attempts and waits.
        retries: how often a call is attempted.

    Example:
        ``RolloutClient("grpc://10.0.0.7:50051").generate(Sampling(8, 9), prefix_ids=(1, 5, 39))``
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
    ) -> None:
        self._transport = transport_of(url, "rollout", Bearer.of_client(token))
        self._timeout_s, self._retries = timeout_s, retries or Retries()

    def generate(
        self,
        sampling: Sampling,
        *,
        prefix_ids: Sequence[int] = (),
        context_ids: Sequence[int] = (),
        prompting: Prompting | None = None,
        seed: int = 0,
        epoch: int | None = None,
        min_version: int = 0,
        timeout_s: float | None = None,
    ) -> Generated:
        """``sampling.group_size`` thoughts after one prefix.

        Raises:
            InvalidInput: the model cannot serve this request; nothing was sampled.
            NotReady: the replica's policy was older than ``min_version`` until the deadline.
            Stale: the replica serves a newer epoch.
            Unreachable: no reply within the deadline.
        """
        request = _generate(sampling, prefix_ids, context_ids, prompting, seed, epoch, min_version)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return call(self._transport, request, timeout_s, self._retries)

    def close(self) -> None:
        """Release the connection."""
        self._transport.close()

    def __enter__(self) -> RolloutClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncRolloutClient:
    """:class:`RolloutClient` for asyncio: one event loop, any number of concurrent calls.

    Example:
        ``async with AsyncRolloutClient("grpc://10.0.0.7:50051") as client: ...``
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
    ) -> None:
        self._transport = async_transport_of(url, "rollout", Bearer.of_client(token))
        self._timeout_s, self._retries = timeout_s, retries or Retries()

    async def generate(
        self,
        sampling: Sampling,
        *,
        prefix_ids: Sequence[int] = (),
        context_ids: Sequence[int] = (),
        prompting: Prompting | None = None,
        seed: int = 0,
        epoch: int | None = None,
        min_version: int = 0,
        timeout_s: float | None = None,
    ) -> Generated:
        """As :meth:`RolloutClient.generate`; cancelling it stops the work on the server."""
        request = _generate(sampling, prefix_ids, context_ids, prompting, seed, epoch, min_version)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await call_async(self._transport, request, timeout_s, self._retries)

    async def close(self) -> None:
        """Release the connection."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncRolloutClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _generate(
    sampling: Sampling,
    prefix_ids: Sequence[int],
    context_ids: Sequence[int],
    prompting: Prompting | None,
    seed: int,
    epoch: int | None,
    min_version: int,
) -> Call[Generated]:
    body = GenerateRequest(
        tuple(prefix_ids), tuple(context_ids), prompting, sampling, seed, epoch, min_version
    )
    return Call("Generate", "", body, _read)


def _read(reply: Any) -> Generated:
    return Generated(**reply)
