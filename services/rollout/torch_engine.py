"""The embedded engine: transformers on this process's torch, for laptops, tests and small GPUs.

Design: a batch of tasks is decoded by one version from its first token to its last, so every thought
has exactly one version span; a flip waits for the batch in hand. vLLM switches inside a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from forethought.compute.model import LanguageModel
from forethought.compute.rows import token_budget_batches
from forethought.compute.sampling import Sample, SampleRequest, derive_seed, sample
from forethought.compute.served_model import ServedModel
from forethought.types import Rollout, Task, Thought, VersionSpan, WeightManifest


class TorchEngine:
    """Batched, KV-cached sampling; the context of a position is prefilled once for its G samples."""

    def __init__(
        self, *, replica: str, device: str, max_batch_tokens: int, deterministic: bool = False
    ) -> None:
        """``deterministic`` decodes one task at a time, so that shapes never depend on timing."""
        self._replica = replica
        self._max_batch_tokens = max_batch_tokens
        self._deterministic = deterministic
        self._served = ServedModel("policy", device)
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch-engine")

    @property
    def serving(self) -> WeightManifest | None:
        """The policy that samples now."""
        return self._served.manifest

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        """Flip between two batches."""
        await asyncio.to_thread(self._served.load, directory, manifest)

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        """Sample all tasks on the compute thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compute, self._generate, list(tasks))

    async def close(self) -> None:
        """Let the batch in hand finish and stop the compute thread."""
        await asyncio.to_thread(self._compute.shutdown)

    def _generate(self, tasks: list[Task]) -> list[Rollout]:
        with self._served.hold() as serving:
            faults = [_fault(task, serving.language_model) for task in tasks]
            sound = [task for task, fault in zip(tasks, faults, strict=True) if fault is None]
            thoughts = iter(self._sample(sound, serving.language_model.model, serving.manifest))
            return [
                Rollout(task, replica=self._replica, error=fault)
                if fault
                else Rollout(task, next(thoughts), replica=self._replica)
                for task, fault in zip(tasks, faults, strict=True)
            ]

    def _sample(
        self, tasks: list[Task], model: Any, manifest: WeightManifest
    ) -> list[tuple[tuple[Thought, ...], ...]]:
        """Thoughts of every task, [K][G] each."""
        results: list[tuple[tuple[Thought, ...], ...]] = [()] * len(tasks)
        for indices in self._batches(tasks):
            requests = [request for i in indices for request in _requests(tasks[i])]
            groups = iter(sample(model, requests))
            for i in indices:
                results[i] = tuple(
                    tuple(_thought(s, manifest.version) for s in next(groups))
                    for _ in tasks[i].positions_K
                )
        return results

    def _batches(self, tasks: list[Task]) -> Iterator[list[int]]:
        if self._deterministic:
            return iter([[index] for index in range(len(tasks))])
        return token_budget_batches([_num_tokens(task) for task in tasks], self._max_batch_tokens)


def _requests(task: Task) -> list[SampleRequest]:
    sampling, prompting, trunk = task.sampling, task.prompting, task.document.token_ids_N
    return [
        SampleRequest(
            prefix_ids=prompting.head_ids + trunk[: position.index] + prompting.bridge_ids,
            seeds_G=tuple(
                derive_seed(task.seed, task.task_id, k, g) for g in range(sampling.group_size)
            ),
            max_tokens=sampling.max_thought_tokens,
            temperature=sampling.temperature,
            stop_ids=sampling.stop_ids,
        )
        for k, position in enumerate(task.positions_K)
    ]


def _thought(drawn: Sample, version: int) -> Thought:
    spans = (VersionSpan(version, len(drawn.token_ids_L)),)
    return Thought(drawn.token_ids_L, drawn.logprobs_L, spans, closed=drawn.stopped)


def _longest(task: Task) -> int:
    """Tokens of the longest branch as the scorer will read it: close and target included."""
    prompting = task.prompting
    around = len(prompting.head_ids + prompting.bridge_ids + prompting.close_ids)
    around += task.sampling.max_thought_tokens
    return around + max(p.index + len(p.target_ids_H) for p in task.positions_K)


def _num_tokens(task: Task) -> int:
    return _longest(task) * task.sampling.group_size * len(task.positions_K)


def _fault(task: Task, language_model: LanguageModel) -> str | None:
    """Why this task cannot be served, so that its neighbours in the batch still are."""
    vocabulary = language_model.model.get_input_embeddings().num_embeddings
    trunk, prompting = task.document.token_ids_N, task.prompting
    largest_id = max(trunk + prompting.head_ids + prompting.bridge_ids, default=0)
    if not task.positions_K:
        return f"task {task.task_id} has no position to think at"
    last = max(position.index for position in task.positions_K)
    if last > len(trunk):
        return f"task {task.task_id} has a position at {last}, its document {len(trunk)} tokens"
    if _longest(task) > language_model.max_length_tokens:
        return (
            f"task {task.task_id} needs {_longest(task)} tokens, the model takes "
            f"{language_model.max_length_tokens}; lower corpus.window_tokens or "
            "sampling.max_thought_tokens"
        )
    if largest_id >= vocabulary:
        return (
            f"task {task.task_id} has token id {largest_id}, the model {vocabulary} embeddings; "
            "tokenise corpus and prompt with the model's own tokenizer"
        )
    return None
