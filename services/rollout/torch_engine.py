"""The embedded engine: transformers in this process, for laptops, tests and small GPUs.

Design: a batch of tasks is decoded by one version from its first token to its last, so every thought
has exactly one version span; a flip waits for the current batch. vLLM switches inside a request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from forethought.compute.decode_batches import sample_within
from forethought.compute.device_failures import device_failures
from forethought.compute.rows import token_budget_batches
from forethought.compute.sampling import Sample
from forethought.compute.served_model import ServedModel, Serving
from forethought.scatter import compute_flat
from forethought.types import Rollout, Task, Thought, VersionSpan, WeightManifest
from services.rollout.tasks import (
    ThoughtsKG,
    fault,
    longest_branch,
    num_tokens,
    rollouts_of,
    sample_requests,
)


class TorchEngine:
    """Batched, KV-cached sampling; the context of a position is prefilled once for its G samples."""

    def __init__(
        self,
        *,
        replica: str,
        device: str,
        max_batch_tokens: int,
        deterministic: bool = False,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``deterministic`` decodes one task at a time, so that shapes never depend on timing.

        ``on_progress`` is called after every token, on the compute thread.
        """
        self._on_progress = on_progress
        self._replica = replica
        self._max_batch_tokens = max_batch_tokens
        self._deterministic = deterministic
        self._served = ServedModel(
            "policy", device, lambda model: model.consistency.sampling_fault()
        )
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch-engine")

    @property
    def serving(self) -> WeightManifest | None:
        """The policy currently served."""
        return self._served.manifest

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        """Flip to a new snapshot between two batches."""
        await asyncio.to_thread(self._served.load, directory, manifest)

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        """Sample all tasks on the compute thread, which stops at the next token if this is cancelled.

        Raises:
            EngineLost: the GPU failed.
            MemoryError: these tasks do not fit into its memory together.
        """
        loop, is_over = asyncio.get_running_loop(), threading.Event()

        def is_cancelled() -> bool:
            self._on_progress()
            return is_over.is_set()

        try:
            return await loop.run_in_executor(
                self._compute, self._generate, list(tasks), is_cancelled
            )
        finally:
            is_over.set()

    def refusal(self, task: Task) -> str | None:
        """Why the policy currently served cannot serve this task."""
        return _fault(task, self._served.now) if self._served.is_ready else None

    async def close(self) -> None:
        """Finish the current batch and stop the compute thread."""
        await asyncio.to_thread(self._compute.shutdown)

    def _generate(self, tasks: list[Task], is_cancelled: Callable[[], bool]) -> list[Rollout]:
        with device_failures(), self._served.hold() as serving:
            faults = [_fault(task, serving) for task in tasks]
            sample_tasks = partial(self._sample, serving, is_cancelled)
            return rollouts_of(tasks, faults, sample_tasks, self._replica)

    def _sample(
        self, serving: Serving, is_cancelled: Callable[[], bool], tasks: list[Task]
    ) -> list[ThoughtsKG]:
        """Thoughts of every task, [K][G] each."""
        results: list[ThoughtsKG] = [()] * len(tasks)
        model, version = serving.language_model.model, serving.manifest.version
        sample_all = partial(
            sample_within,
            model,
            max_batch_tokens=self._max_batch_tokens,
            is_cancelled=is_cancelled,
        )
        for indices in self._batches(tasks):
            requests_K = [sample_requests(tasks[i]) for i in indices]
            for i, samples_KG in zip(indices, compute_flat(requests_K, sample_all), strict=True):
                results[i] = tuple(
                    tuple(_thought(drawn, version) for drawn in samples_G)
                    for samples_G in samples_KG
                )
        return results

    def _batches(self, tasks: list[Task]) -> Iterator[list[int]]:
        if self._deterministic:
            return iter([[index] for index in range(len(tasks))])
        return token_budget_batches([num_tokens(task) for task in tasks], self._max_batch_tokens)


def _fault(task: Task, serving: Serving) -> str | None:
    model = serving.language_model
    return fault(
        task, model.vocabulary, model.max_length_tokens
    ) or model.consistency.sampling_fault(longest_branch(task))


def _thought(drawn: Sample, version: int) -> Thought:
    spans = (VersionSpan(version, len(drawn.token_ids_L)),)
    return Thought(
        drawn.token_ids_L, drawn.logprobs_L, spans, drawn.stopped, drawn.num_prediction_tokens
    )
