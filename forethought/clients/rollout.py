"""Clients that sample thoughts from a rollout replica.

Design: a request is a prefix (or a context with its prompting), the sampling parameters and a seed; the
same request gives the same thoughts under the same weights, so it can be retried after a failure. A caller
that needs at least some version sets ``min_version``, and the call waits, within its deadline, until the
replica serves it.
"""

from __future__ import annotations

from collections.abc import Sequence

from forethought.clients.client import AsyncClient, Client
from forethought.clients.rollout_requests import Generated, generate
from forethought.types import Prompting, Sampling


class RolloutClient(Client):
    """Blocking client of one rollout replica; thread-safe.

    The constructor takes ``grpc://host:port``; see :class:`forethought.clients.client.Client`.

    Example:
        ``RolloutClient("grpc://10.0.0.7:50051").generate(Sampling(8, 9), prefix_ids=(1, 5, 39))``
    """

    service = "rollout"

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
        request = generate(sampling, prefix_ids, context_ids, prompting, seed, epoch, min_version)
        return self._send(request, timeout_s)


class AsyncRolloutClient(AsyncClient):
    """:class:`RolloutClient` for asyncio: one event loop, any number of concurrent calls.

    Example:
        ``async with AsyncRolloutClient("grpc://10.0.0.7:50051") as client: ...``
    """

    service = "rollout"

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
        request = generate(sampling, prefix_ids, context_ids, prompting, seed, epoch, min_version)
        return await self._send(request, timeout_s)
