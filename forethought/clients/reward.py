"""Clients of the reward service: scores of thoughts, log-probs, matches and entropies."""

from __future__ import annotations

from collections.abc import Sequence

from forethought.clients import reward_requests
from forethought.clients.client import AsyncClient, Client
from forethought.clients.reward_requests import (
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


class RewardClient(Client):
    """Blocking client of one reward service; thread-safe.

    Every method raises ``InvalidInput`` (a bad request), ``NotReady`` or ``Overloaded`` (until the
    deadline), ``Unreachable`` (no reply within it), or another ``ForethoughtError``.

    The constructor takes ``http://host:port``, ``https://…`` or ``grpc://host:port``; see :class:`Client`.

    Example:
        ``RewardClient("http://127.0.0.1:8080").score([ScoreItem("3 + 4 = ", "7", ("a", "b"))])``
    """

    service = "reward"

    def score(
        self, items: Sequence[ScoreItem], *, objective: str = "rlp", timeout_s: float | None = None
    ) -> tuple[ItemOutcome, ...]:
        """Rewards and advantages of every item's thoughts; a bad item gets an error in its place."""
        return self._send(reward_requests.score(items, objective), timeout_s)

    def logprobs(
        self,
        prefix: Tokens,
        continuations: Sequence[Tokens],
        *,
        model: ModelName = "policy",
        timeout_s: float | None = None,
    ) -> Logprobs:
        """Teacher-forced log-probs of every continuation: temperature 1, nothing removed."""
        return self._send(reward_requests.logprobs(model, prefix, continuations), timeout_s)

    def match(
        self, items: Sequence[MatchItem], *, kind: MatchKind, timeout_s: float | None = None
    ) -> tuple[MatchOutcome, ...]:
        """Whether each prediction is right; a bad item gets an error in its place."""
        return self._send(reward_requests.match(items, kind), timeout_s)

    def entropy(
        self,
        tokens: Tokens,
        *,
        top_k: int = 16,
        renormalise: bool = False,
        timeout_s: float | None = None,
    ) -> Entropies:
        """Entropy of the policy's prediction of every token but the first, over ``top_k`` tokens."""
        return self._send(reward_requests.entropy(tokens, top_k, renormalise), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> Models:
        """Policy and baseline with their versions, and the available objectives."""
        return self._send(reward_requests.models(), timeout_s)


class AsyncRewardClient(AsyncClient):
    """:class:`RewardClient` for asyncio: one event loop, any number of concurrent calls.

    Cancelling a call removes its work from the server's queue.

    Example:
        ``async with AsyncRewardClient("grpc://10.0.0.7:50051") as client: ...``
    """

    service = "reward"

    async def score(
        self, items: Sequence[ScoreItem], *, objective: str = "rlp", timeout_s: float | None = None
    ) -> tuple[ItemOutcome, ...]:
        """Rewards and advantages of every item's thoughts; a bad item gets an error in its place."""
        return await self._send(reward_requests.score(items, objective), timeout_s)

    async def logprobs(
        self,
        prefix: Tokens,
        continuations: Sequence[Tokens],
        *,
        model: ModelName = "policy",
        timeout_s: float | None = None,
    ) -> Logprobs:
        """Teacher-forced log-probs of every continuation: temperature 1, nothing removed."""
        return await self._send(reward_requests.logprobs(model, prefix, continuations), timeout_s)

    async def match(
        self, items: Sequence[MatchItem], *, kind: MatchKind, timeout_s: float | None = None
    ) -> tuple[MatchOutcome, ...]:
        """Whether each prediction is right; a bad item gets an error in its place."""
        return await self._send(reward_requests.match(items, kind), timeout_s)

    async def entropy(
        self,
        tokens: Tokens,
        *,
        top_k: int = 16,
        renormalise: bool = False,
        timeout_s: float | None = None,
    ) -> Entropies:
        """Entropy of the policy's prediction of every token but the first, over ``top_k`` tokens."""
        return await self._send(reward_requests.entropy(tokens, top_k, renormalise), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> Models:
        """Policy and baseline with their versions, and the available objectives."""
        return await self._send(reward_requests.models(), timeout_s)
