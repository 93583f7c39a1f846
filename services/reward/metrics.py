"""What a reward replica tells Prometheus beside what all replicas tell: its HTTP door and its line.

Design: the HTTP door notes every request's seconds, which costs it about a microsecond. Requests are
told apart by endpoint and status, both from short lists, so nobody can make series by asking for odd
paths. The price is that everything else is one endpoint, "other".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from forethought.telemetry.distribution import REQUEST_BOUNDS_S, Distribution
from forethought.telemetry.metrics import counter, gauge, histogram
from services.reward.batching import Batcher

ENDPOINTS = frozenset(
    f"/v1/{name}" for name in ("score", "logprobs", "match", "entropy", "models")
) | {"/docs"}
CLIENT_DISCONNECTED = 499
"""In the place of a status where the caller left before the answer."""


class HttpSeconds:
    """Seconds of HTTP requests, from head to answer, by endpoint and status.

    Example:
        ``HttpSeconds().observe("/v1/score", 200, 0.004)``
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, int], Distribution] = {}

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Note one request."""
        distribution = self.seconds.get((path, status))
        if distribution is None:
            key = (path if path in ENDPOINTS else "other", status)
            distribution = self.seconds.setdefault(key, Distribution(REQUEST_BOUNDS_S))
        distribution.add(seconds)


class RewardMetrics(Collector):
    """The HTTP door and the line behind it.

    Example:
        ``RewardMetrics(registry, app.seconds, service.batcher)``
    """

    def __init__(
        self, registry: CollectorRegistry, http: HttpSeconds, batcher: Batcher[Any, Any]
    ) -> None:
        self._http, self._batcher = http, batcher
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The families, with the numbers of this moment."""
        batcher = self._batcher
        yield histogram(
            "forethought_reward_http_request_seconds",
            f"HTTP requests, from their head to their answer; {CLIENT_DISCONNECTED}: the caller left",
            {(path, str(status)): d for (path, status), d in self._http.seconds.items()},
            ("endpoint", "status"),
        )
        yield gauge(
            "forethought_reward_waiting_tokens",
            "Tokens of requests that are admitted and unanswered",
            batcher.num_waiting_tokens,
        )
        yield counter(
            "forethought_reward_refused_requests_total",
            "Requests refused because too much was waiting",
            batcher.num_refused,
        )
        yield histogram(
            "forethought_reward_batch_seconds",
            "Batches of requests on the compute thread, waiting for it included",
            batcher.batch_seconds,
        )
        yield histogram(
            "forethought_reward_batch_tokens",
            "Tokens of those batches",
            batcher.batch_tokens,
        )
