"""Prometheus metrics of a reward replica beyond those of every replica: HTTP latency and the queue.

Design: the HTTP server records the latency of every request, at about a microsecond each. The labels are
endpoint and status, both from short lists, so a client cannot create series by requesting odd paths. The
price is that all other paths share one endpoint, "other".
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
"""Recorded as the status if the client disconnected before the reply."""


class HttpSeconds:
    """Latency of HTTP requests in seconds, from headers to reply, by endpoint and status.

    Example:
        ``HttpSeconds().observe("/v1/score", 200, 0.004)``
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, int], Distribution] = {}

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Record one request."""
        distribution = self.seconds.get((path, status))
        if distribution is None:
            key = (path if path in ENDPOINTS else "other", status)
            distribution = self.seconds.setdefault(key, Distribution(REQUEST_BOUNDS_S))
        distribution.add(seconds)


class RewardMetrics(Collector):
    """Metrics of the HTTP server and of the batcher's queue.

    Example:
        ``RewardMetrics(registry, app.seconds, service.batcher)``
    """

    def __init__(
        self, registry: CollectorRegistry, http: HttpSeconds, batcher: Batcher[Any, Any]
    ) -> None:
        self._http, self._batcher = http, batcher
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metric families with their current values."""
        batcher = self._batcher
        yield histogram(
            "forethought_reward_http_request_seconds",
            f"HTTP request latency, headers to reply; {CLIENT_DISCONNECTED}: the client disconnected",
            {(path, str(status)): d for (path, status), d in self._http.seconds.items()},
            ("endpoint", "status"),
        )
        yield gauge(
            "forethought_reward_waiting_tokens",
            "Tokens of requests admitted and not yet answered",
            batcher.num_waiting_tokens,
        )
        yield counter(
            "forethought_reward_refused_requests_total",
            "Requests refused with 429 because too many tokens were waiting",
            batcher.num_refused,
        )
        yield histogram(
            "forethought_reward_batch_seconds",
            "Latency of request batches, including the wait for the compute thread",
            batcher.batch_seconds,
        )
        yield histogram(
            "forethought_reward_batch_tokens",
            "Tokens per batch of requests",
            batcher.batch_tokens,
        )
