"""A run without rollouts: trees for next-token loss go to the learner directly.

    take trees -> step -> metrics -> checkpoint

Trains base models, does continued pre-training (CPT) and warms up think markers, with the same learner,
corpus and checkpoints as reinforcement; needs neither Redis nor replicas.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Protocol

from forethought.background import end
from forethought.corpus.mixture import CorpusCursor
from trainer.admission.feed import Documents
from trainer.assembly import Assembly
from trainer.batch.thought_tree import ThoughtTree, trees_of_documents
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.learner.learner import StepResult
from trainer.metrics.step_log import MetricsLog
from trainer.metrics.step_watch import StepWatch


class TreeSource(Protocol):
    """An endless supply of what is trained on."""

    def take(self, num_documents: int) -> list[ThoughtTree]:
        """The trees of the next ``num_documents``, their weights summing to 1 for each kind of loss."""
        ...


class Goal(Protocol):
    """What a run may reach before its last step."""

    @property
    def is_reached(self) -> bool:
        """Whether it has been."""
        ...

    def measure(self, step: int, *, is_first: bool) -> dict[str, float]:
        """Values for the metrics log after ``step``, empty where none are due."""
        ...


class PlainDocuments:
    """Whole documents, of the corpus unless others are given."""

    def __init__(self, parts: Assembly, documents: Documents | None = None) -> None:
        self._documents, self._bos_ids = documents or parts.corpus, parts.bos_ids

    def take(self, num_documents: int) -> list[ThoughtTree]:
        """See :class:`TreeSource`."""
        return trees_of_documents(self._documents.take(num_documents), self._bos_ids)


class NextTokenRun:
    """Next-token training until ``learner.steps``, ``learner.max_tokens`` or the goal is reached, nothing
    is learned (:mod:`forethought.run.learning`), or it is stopped.
    """

    def __init__(
        self, parts: Assembly, source: TreeSource | None = None, goal: Goal | None = None
    ) -> None:
        """Without ``source``, the corpus is trained on as it is."""
        self._parts, self._source = parts, source or PlainDocuments(parts)
        self._goal = goal
        self._watch = StepWatch(parts.settings.learner)
        self._stop = threading.Event()
        self._num_steps = 0
        self._num_tokens = 0
        self._seconds_before = 0.0
        self._started_s = time.monotonic()

    def stop(self) -> None:
        """Finish the current step, write a checkpoint, return from :meth:`run`. Signal-safe."""
        self._stop.set()

    async def run_until(self, stop: asyncio.Event) -> dict[str, Any]:
        """:meth:`run` in a thread, until done or ``stop`` is set; returns the summary."""

        async def pass_on() -> None:
            await stop.wait()
            self.stop()

        stopping = asyncio.create_task(pass_on())
        try:
            return await asyncio.to_thread(self.run)
        finally:
            await end((stopping,))

    def describe(self) -> dict[str, object]:
        """The run's current step and version, for the ops port."""
        return {"step": self._num_steps, "version": self._parts.learner.version}

    def run(self) -> dict[str, Any]:
        """Train; returns the summary."""
        self._resume()
        if not self._is_done:
            self._parts.record_settings()
        settings, directory = self._parts.settings, self._parts.directory
        metrics = MetricsLog(directory.metrics, self._num_steps, settings.learner.tensorboard)
        self._watch.resume(directory.read_metrics(), self._is_done)
        self._measure(is_first=True)
        while not (self._is_done or self._failure or self._stop.is_set()):
            started_s = time.monotonic()
            trees = self._source.take(settings.learner.batch_tasks)
            result = self._parts.learner.step(trees, settings.learner.inner_epochs)
            self._num_steps += 1
            self._num_tokens += result.num_tokens
            values = self._values(result, time.monotonic() - started_s) | self._measure()
            metrics.write(self._num_steps, self._watch.see(self._num_steps, values))
            if self._num_steps % settings.checkpoint.every_steps == 0:
                self._save()
        metrics.close()
        return self._summary()

    @property
    def _failure(self) -> str:
        return self._watch.failure(self._is_done)

    @property
    def _is_done(self) -> bool:
        is_reached = self._goal is not None and self._goal.is_reached
        return is_reached or self._parts.settings.learner.is_done(self._num_steps, self._num_tokens)

    def _measure(self, *, is_first: bool = False) -> dict[str, float]:
        return self._goal.measure(self._num_steps, is_first=is_first) if self._goal else {}

    def _values(self, result: StepResult, step_s: float) -> dict[str, Any]:
        return {
            "version": self._parts.learner.version,
            "loss": result.loss,
            "nll": result.nll,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped": result.skipped,
            "skipped_passes": result.num_skipped_passes,
            "tokens": self._num_tokens,
            "step_s": step_s,
        }

    def _resume(self) -> None:
        checkpoint = self._parts.directory.latest_checkpoint()
        if checkpoint is None:
            return
        progress, _ = load_checkpoint(checkpoint, self._parts.learner)
        self._parts.corpus.seek(CorpusCursor.from_json(progress.cursor))
        self._num_steps, self._num_tokens = progress.num_steps, progress.num_tokens
        self._seconds_before = progress.seconds

    def _save(self) -> str:
        progress = Progress(
            epoch=0,
            num_steps=self._num_steps,
            batch_tasks=self._parts.settings.learner.batch_tasks,
            version=self._parts.learner.version,
            num_optimizer_steps=self._parts.learner.num_optimizer_steps,
            next_task_id=0,
            num_tokens=self._num_tokens,
            seconds=self._seconds(),
            cursor=self._parts.corpus.cursor.to_json(),
        )
        keep = self._parts.settings.checkpoint.keep
        return str(save_checkpoint(self._parts.directory, self._parts.learner, progress, (), keep))

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started_s

    def _summary(self) -> dict[str, Any]:
        return {
            "steps": self._num_steps,
            "done": self._is_done and not self._failure,
            **({"failure": self._failure} if self._failure else {}),
            "policy_version": self._parts.learner.version,
            "tokens": self._num_tokens,
            "seconds": self._seconds(),
            "checkpoint": self._save(),
        }
