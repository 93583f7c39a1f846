"""The embedded engine: transformers in this process, for laptops, tests and small GPUs.

Design: a batch is decoded by one version from its first token to its last, so every thought has exactly
one version span; a flip waits for the current batch. vLLM switches inside a request. A task that is larger
than a batch is decoded in several, so that other callers take turns with it. The price is that the thoughts
of such a task may be of several versions, as they may be with vLLM.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from forethought.compute.decode_batches import decode_batches, row_tokens
from forethought.compute.device_failures import device_failures
from forethought.compute.forms import forms_of
from forethought.compute.model import LanguageModel
from forethought.compute.sampling import Sample, SampleRequest, sample
from forethought.compute.served_model import ServedModel, Serving
from forethought.errors import NotReady
from forethought.types import Rollout, Task, Thought, VersionSpan, WeightManifest
from services.rollout.tasks import (
    ThoughtsKG,
    fault,
    longest_branch,
    rollouts_of,
    sample_requests,
)


class TorchEngine:
    """Batched sampling; a document is computed once for all samples of all its positions."""

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
        serving, tasks, is_over = self._served.now, list(tasks), threading.Event()
        faults = [_fault(task, serving) for task in tasks]
        valid = [task for task, reason in zip(tasks, faults, strict=True) if reason is None]

        def is_cancelled() -> bool:
            self._on_progress()
            return is_over.is_set()

        try:
            sampled = await self._sample(valid, serving.language_model, is_cancelled)
        finally:
            is_over.set()
        return rollouts_of(tasks, faults, lambda _: sampled, self._replica)

    def refusal(self, task: Task) -> str | None:
        """Why the policy currently served cannot serve this task."""
        return _fault(task, self._served.now) if self._served.is_ready else None

    async def close(self) -> None:
        """Finish the current batch and stop the compute thread."""
        await asyncio.to_thread(self._compute.shutdown)

    async def _sample(
        self, tasks: list[Task], model: LanguageModel, is_cancelled: Callable[[], bool]
    ) -> list[ThoughtsKG]:
        """Thoughts of every task, [K][G] each."""
        results: list[ThoughtsKG] = [()] * len(tasks)
        for indices in self._batches(tasks):
            batch = [tasks[index] for index in indices]
            sampled = await self._sample_batch(batch, model, is_cancelled)
            for index, thoughts_KG in zip(indices, sampled, strict=True):
                results[index] = thoughts_KG
        return results

    async def _sample_batch(
        self, tasks: list[Task], model: LanguageModel, is_cancelled: Callable[[], bool]
    ) -> list[ThoughtsKG]:
        """Thoughts of tasks that are decoded together, or of one in turns."""
        loop = asyncio.get_running_loop()
        requests = [request for task in tasks for request in sample_requests(task)]
        drawn: list[Thought] = []
        form = forms_of(model.model).decoding
        budget = (self._max_batch_tokens, form, row_tokens(model.model))
        for turn in decode_batches(requests, *budget):
            pieces = [request for _, request in turn]
            drawn += await loop.run_in_executor(
                self._compute, self._draw, pieces, model, is_cancelled
            )
        thoughts = iter(drawn)
        return [
            tuple(
                tuple(next(thoughts) for _ in range(task.sampling.group_size))
                for _ in task.positions_K
            )
            for task in tasks
        ]

    def _draw(
        self,
        requests: list[SampleRequest],
        model: LanguageModel,
        is_cancelled: Callable[[], bool],
    ) -> list[Thought]:
        """Thoughts of all requests, one after the other. On the compute thread."""
        with device_failures(), self._served.hold() as serving:
            if serving.language_model is not model:
                raise NotReady("the model was replaced while sampling; expected one: retry")
            groups = sample(model.model, requests, is_cancelled)
            version = serving.manifest.version
        return [_thought(drawn, version) for samples_G in groups for drawn in samples_G]

    def _batches(self, tasks: list[Task]) -> list[list[int]]:
        """Tasks that may be decoded together, the short ones first: other forms than trees pad them."""
        order = sorted(range(len(tasks)), key=lambda index: (longest_branch(tasks[index]), index))
        return [[index] for index in range(len(tasks))] if self._deterministic else [order]


def _fault(task: Task, serving: Serving) -> str | None:
    model = serving.language_model
    return fault(
        task, model.vocabulary, model.max_length_tokens
    ) or model.consistency.sampling_fault(longest_branch(task))


def _thought(drawn: Sample, version: int) -> Thought:
    spans = (VersionSpan(version, len(drawn.token_ids_L)),)
    is_finite = all(map(math.isfinite, drawn.target_logprobs_H))  # if not, the scorer says so
    return Thought(
        drawn.token_ids_L,
        drawn.logprobs_L,
        spans,
        drawn.stopped,
        drawn.num_prediction_tokens,
        drawn.target_logprobs_H if is_finite else (),
    )
