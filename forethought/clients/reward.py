"""Clients of the reward service: scores of thoughts, log-probs, matches and entropies.

Design: the sync and the async client are two thin classes over the same calls and the same transports,
instead of one running the other in a thread: a blocking client then works inside a running event loop and
in any number of threads. The price is that every method's signature is written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from forethought.auth import Bearer
from forethought.clients import reward_calls
from forethought.clients.connect import async_transport_of, transport_of
from forethought.clients.retrying import Call, R, Retries, call, call_async
from forethought.clients.reward_calls import (
    Entropies,
    ItemOutcome,
    Logprobs,
    MatchItem,
    MatchKind,
    MatchOutcome,
    ModelName,
    Models,
    ScoreItem,
    Tokens,
)


class RewardClient:
    """Blocking client of one reward service; thread-safe.

    Every method raises ``InvalidInput`` (a bad request), ``NotReady`` or ``Overloaded`` (until the
    deadline), ``Unreachable`` (no reply within it), or another ``ForethoughtError``.

    Args:
        url: ``http://host:port``, ``https://…`` or ``grpc://host:port``.
        token: the bearer token; "" for none. Default: FORETHOUGHT_AUTH_TOKEN, …_TOKEN_FILE,
            …_CLIENT_TOKEN or …_CLIENT_TOKEN_FILE of the environment.
        timeout_s: deadline of a call, including all attempts and waits.
        retries: how often a call is attempted.

    Example:
        ``RewardClient("http://127.0.0.1:8080").score([ScoreItem("3 + 4 = ", "7", ("a", "b"))])``
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
    ) -> None:
        self._transport = transport_of(url, "reward", Bearer.of_client(token))
        self._timeout_s, self._retries = timeout_s, retries or Retries()

    def score(
        self, items: Sequence[ScoreItem], *, objective: str = "rlp", timeout_s: float | None = None
    ) -> tuple[ItemOutcome, ...]:
        """Rewards and advantages of every item's thoughts; a bad item gets an error in its place."""
        return self._call(reward_calls.score(items, objective), timeout_s)

    def logprobs(
        self,
        prefix: Tokens,
        continuations: Sequence[Tokens],
        *,
        model: ModelName = "policy",
        timeout_s: float | None = None,
    ) -> Logprobs:
        """Teacher-forced log-probs of every continuation: temperature 1, nothing removed."""
        return self._call(reward_calls.logprobs(model, prefix, continuations), timeout_s)

    def match(
        self, items: Sequence[MatchItem], *, kind: MatchKind, timeout_s: float | None = None
    ) -> tuple[MatchOutcome, ...]:
        """Whether each prediction is right; a bad item gets an error in its place."""
        return self._call(reward_calls.match(items, kind), timeout_s)

    def entropy(
        self,
        tokens: Tokens,
        *,
        top_k: int = 16,
        renormalise: bool = False,
        timeout_s: float | None = None,
    ) -> Entropies:
        """Entropy of the policy's prediction of every token but the first, over ``top_k`` tokens."""
        return self._call(reward_calls.entropy(tokens, top_k, renormalise), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> Models:
        """Policy and baseline with their versions, and the available objectives."""
        return self._call(reward_calls.models(), timeout_s)

    def close(self) -> None:
        """Release the connections."""
        self._transport.close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, request: Call[R], timeout_s: float | None) -> R:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return call(self._transport, request, timeout_s, self._retries)


class AsyncRewardClient:
    """:class:`RewardClient` for asyncio: one event loop, any number of concurrent calls.

    Cancelling a call removes its work from the server's queue.

    Example:
        ``async with AsyncRewardClient("grpc://10.0.0.7:50051") as client: ...``
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        retries: Retries | None = None,
    ) -> None:
        self._transport = async_transport_of(url, "reward", Bearer.of_client(token))
        self._timeout_s, self._retries = timeout_s, retries or Retries()

    async def score(
        self, items: Sequence[ScoreItem], *, objective: str = "rlp", timeout_s: float | None = None
    ) -> tuple[ItemOutcome, ...]:
        """Rewards and advantages of every item's thoughts; a bad item gets an error in its place."""
        return await self._call(reward_calls.score(items, objective), timeout_s)

    async def logprobs(
        self,
        prefix: Tokens,
        continuations: Sequence[Tokens],
        *,
        model: ModelName = "policy",
        timeout_s: float | None = None,
    ) -> Logprobs:
        """Teacher-forced log-probs of every continuation: temperature 1, nothing removed."""
        return await self._call(reward_calls.logprobs(model, prefix, continuations), timeout_s)

    async def match(
        self, items: Sequence[MatchItem], *, kind: MatchKind, timeout_s: float | None = None
    ) -> tuple[MatchOutcome, ...]:
        """Whether each prediction is right; a bad item gets an error in its place."""
        return await self._call(reward_calls.match(items, kind), timeout_s)

    async def entropy(
        self,
        tokens: Tokens,
        *,
        top_k: int = 16,
        renormalise: bool = False,
        timeout_s: float | None = None,
    ) -> Entropies:
        """Entropy of the policy's prediction of every token but the first, over ``top_k`` tokens."""
        return await self._call(reward_calls.entropy(tokens, top_k, renormalise), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> Models:
        """Policy and baseline with their versions, and the available objectives."""
        return await self._call(reward_calls.models(), timeout_s)

    async def close(self) -> None:
        """Release the connections."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncRewardClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(self, request: Call[R], timeout_s: float | None) -> R:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await call_async(self._transport, request, timeout_s, self._retries)
