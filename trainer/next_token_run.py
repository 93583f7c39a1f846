"""A run without thoughts: documents go from the corpus to the learner directly.

    take documents -> step -> metrics -> checkpoint

Trains base models and does continued pre-training (CPT), with the same learner, corpus and checkpoints as
reinforcement; needs neither Redis nor replicas.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from forethought.background import end
from forethought.corpus.mixture import CorpusCursor
from trainer.admission.feed import Documents
from trainer.assembly import Assembly
from trainer.batch.thought_tree import trees_of_documents
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.learner.learner import StepResult
from trainer.metrics.step_log import MetricsLog
from trainer.metrics.step_watch import StepWatch


class NextTokenRun:
    """Next-token training until ``learner.steps`` or ``learner.max_tokens`` is reached, nothing is learned
    (:mod:`forethought.run.learning`), or it is stopped.
    """

    def __init__(self, parts: Assembly, documents: Documents | None = None) -> None:
        """``documents`` replaces the corpus as the source, for callers that rewrite documents."""
        self._parts, self._documents = parts, documents or parts.corpus
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
        while not (self._is_done or self._failure or self._stop.is_set()):
            started_s = time.monotonic()
            documents = self._documents.take(settings.learner.batch_tasks)
            result = self._parts.learner.step(
                trees_of_documents(documents, self._parts.bos_ids), settings.learner.inner_epochs
            )
            self._num_steps += 1
            self._num_tokens += result.num_tokens
            values = self._values(result, time.monotonic() - started_s)
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
        return self._parts.settings.learner.is_done(self._num_steps, self._num_tokens)

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
