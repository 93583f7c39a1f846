"""Asking a rollout replica for thoughts.

Design: a question is a prefix (or a context with its prompting), how to sample, and a seed; the same
question has the same answer from the same weights, so it may be asked again after a failure. A caller
that needs weights of at least some version says so and waits, within its deadline, until they are
served.
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
    """Asks one rollout replica, blocking; usable from several threads.

    Args:
        url: ``grpc://host:port``.
        token: shown to the service; "" for none. Default: FORETHOUGHT_AUTH_TOKEN, …_TOKEN_FILE,
            …_CLIENT_TOKEN or …_CLIENT_TOKEN_FILE of the environment.
        timeout_s: of a question, all its attempts and waits included.
        retries: how often it is asked again.

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
            InvalidInput: the model cannot take this; nothing was sampled.
            NotReady: the replica's policy is older than asked for, until the deadline.
            Stale: the replica serves a newer epoch.
            Unreachable: no answer within the deadline.
        """
        question = _question(sampling, prefix_ids, context_ids, prompting, seed, epoch, min_version)
        return call(self._transport, question, _given(timeout_s, self._timeout_s), self._retries)

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
    """:class:`RolloutClient` for asyncio: one event loop, any number of questions at once.

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
        question = _question(sampling, prefix_ids, context_ids, prompting, seed, epoch, min_version)
        timeout_s = _given(timeout_s, self._timeout_s)
        return await call_async(self._transport, question, timeout_s, self._retries)

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


def _question(
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


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
