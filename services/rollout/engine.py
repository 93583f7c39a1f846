"""The rollout engine protocol: the interface between the service and whatever samples tokens.

Design: an engine serves whole tasks (every position, every sample) so that it can share the context's
prefill between the G samples, and labels every token with the version that sampled it, because only
the engine knows when a flip happened inside a request. It knows neither objectives nor queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from forethought.types import Rollout, Task, WeightManifest


class Engine(Protocol):
    """Samples thoughts and takes new weights while it runs."""

    @property
    def serving(self) -> WeightManifest | None:
        """The policy currently served, or None before the first weights."""
        ...

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        """Flip atomically to a verified snapshot in a local directory.

        The directory always contains ``model.safetensors``, and the model files too if they changed.

        Raises:
            InvalidInput: it does not fit; the old version keeps serving.
        """
        ...

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        """One rollout per task, in order; a task that cannot be served becomes a rollout with an error.

        Raises:
            NotReady: no weights have arrived yet.
        """
        ...

    def refusal(self, task: Task) -> str | None:
        """Why the policy currently served cannot serve this task; None if it can, or before any weights.

        ``generate`` refuses for the same reasons; any other error of a rollout is the engine's fault.
        """
        ...

    async def close(self) -> None:
        """Release the engine's resources."""
        ...
