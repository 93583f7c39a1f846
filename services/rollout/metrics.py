"""The engine's Prometheus metrics of a rollout replica.

Design: an engine is wrapped where it is created, so every engine is measured in the same way, for requests
from the queue and from Generate, without engine code. vLLM's internal metrics are not exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from forethought.telemetry.metrics import counter, gauge
from forethought.types import Rollout, Task, WeightManifest
from services.rollout.engine import Engine


class MeasuredEngine:
    """An engine wrapper that counts requested and sampled thoughts. See ``Engine``.

    Example:
        ``engine = MeasuredEngine(TorchEngine(replica="rollout-a1", device="cpu", …))``
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.num_running = 0  # thoughts requested and not yet finished
        self.num_thoughts = {"closed": 0, "truncated": 0}
        self.num_tokens = 0
        self.num_faults = 0

    @property
    def serving(self) -> WeightManifest | None:
        """See ``Engine.serving``."""
        return self._engine.serving

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        """See ``Engine.load``."""
        await self._engine.load(manifest, directory)

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        """See ``Engine.generate``."""
        num_requested = sum(task.sampling.group_size * len(task.positions_K) for task in tasks)
        self.num_running += num_requested
        try:
            rollouts = await self._engine.generate(tasks)
        finally:
            self.num_running -= num_requested
        for rollout in rollouts:
            self._count(rollout)
        return rollouts

    def refusal(self, task: Task) -> str | None:
        """See ``Engine.refusal``."""
        return self._engine.refusal(task)

    async def close(self) -> None:
        """See ``Engine.close``."""
        await self._engine.close()

    def _count(self, rollout: Rollout) -> None:
        self.num_faults += rollout.error is not None
        for thoughts_G in rollout.thoughts_KG:
            for thought in thoughts_G:
                self.num_thoughts["closed" if thought.closed else "truncated"] += 1
                self.num_tokens += len(thought.token_ids_L)


class RolloutMetrics(Collector):
    """The engine's metrics.

    Example:
        ``RolloutMetrics(registry, engine)``
    """

    def __init__(self, registry: CollectorRegistry, engine: MeasuredEngine) -> None:
        self._engine = engine
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metric families with their current values."""
        engine = self._engine
        yield gauge(
            "forethought_rollout_running_thoughts",
            "Thoughts requested and not yet finished",
            engine.num_running,
        )
        yield counter(
            "forethought_rollout_thoughts_total",
            "Thoughts sampled: closed by the policy, or truncated by their token budget",
            engine.num_thoughts,
            ("ended",),
        )
        yield counter(
            "forethought_rollout_thought_tokens_total", "Thought tokens sampled", engine.num_tokens
        )
        yield counter(
            "forethought_rollout_refused_tasks_total",
            "Tasks that the engine answered with an error",
            engine.num_faults,
        )
