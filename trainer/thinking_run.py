"""A run with thoughts: the learner's side of the data flow.

    take batch -> trees -> step -> publish -> admit -> journal -> metrics -> checkpoint

Every batch closes and advances the version, even if its step was skipped or all its tasks failed; after a
few batches without learning, the run ends with the reason (:mod:`forethought.run.learning`). An outage of
Redis is ridden out, for ``redis.patience_s`` at most; a loop that fails for good ends the run with a
checkpoint of the last closed batch. Tasks are admitted only once the loops run: where Redis's memory is
full, admission goes on as results are taken in.

    loop        consumes              produces             waits for           unblocked by
    _learn      a batch's results     weights, tasks,      the whole batch     results, deadlines,
                                      journal, checkpoint                      stop
    _guard      broker.instance_id()  re-admitted tasks    GUARD_S             the clock
    intake      see WorkInFlight      publisher: see Publisher; depths: see DepthWatch
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from forethought import wire
from forethought.auth import Bearer
from forethought.background import Retry, end, first_failure, run_until, uninterrupted
from forethought.corpus.mixture import CorpusCursor
from forethought.errors import InvalidInput, Superseded, Unreachable
from forethought.queue.interface import Broker
from forethought.run.journal import Journal, audit, first_kept_batch
from forethought.types import Replica, ScoredRollout, Task
from forethought.weights.snapshot import make_snapshot
from trainer.admission.replacement import Replacing
from trainer.admission.verification import Verification
from trainer.admission.work_in_flight import WorkInFlight
from trainer.assembly import Assembly, models_needed
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.metrics.depth_watch import DepthWatch
from trainer.metrics.prometheus import PushMetrics, ReplayMetrics, StepMetrics, TaskMetrics
from trainer.metrics.step_counts import StepCounts, TaskCounts
from trainer.metrics.step_log import MetricsLog
from trainer.metrics.step_watch import StepWatch
from trainer.publisher import Publisher
from trainer.replay.replica_checks import ReplicaChecks
from trainer.step_values import step_values
from trainer.train_step import StepReport, TrainStep

log = logging.getLogger(__name__)


GUARD_S = 1.0
"""How often the learner checks that Redis has not lost data and that it still owns the run."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that has been made and is in neither journal nor metrics."""

    batch: int
    results: list[ScoredRollout]
    report: StepReport


class ThinkingRun:
    """Admits tasks, trains on their batches and publishes every version."""

    def __init__(self, parts: Assembly, broker: Broker, stop: asyncio.Event) -> None:
        settings = parts.settings
        self._parts, self._broker, self._stop = parts, broker, stop
        self._section, self._learner = settings.learner, parts.learner
        self._models = models_needed(parts)
        self._retry = Retry(settings.redis.patience_s, stop)
        self._feed = parts.task_feed()
        self._publisher = Publisher(
            broker.replicas, settings.publish, GUARD_S, Bearer.of_run(settings.auth)
        )
        self._work = WorkInFlight(
            broker,
            self._feed,
            settings.learner,
            Verification(self._learner.language_model.vocabulary, lambda: self._learner.version),
            self._retry,
            self._publisher,
        )
        self._checks = ReplicaChecks(parts.learner, settings, self._publisher, self._announce, stop)
        self._depths = DepthWatch(broker, GUARD_S)
        self._counts, self._tasks = StepCounts(), TaskCounts(settings.learner.batch_tasks)
        self._train_step = TrainStep(
            parts.learner, parts.batch_builder(), parts.corpus, settings.learner
        )
        self._watch = StepWatch(settings.learner)
        self._model_files = parts.model_files()
        self._run_id, self._epoch = "", 0
        self._num_steps = 0
        self._num_steps_before = 0
        self._next_task_id = 0
        self._unrecorded: _Step | None = None
        self._num_tokens = 0
        self._seconds_before = 0.0
        self._started_s = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """Train until ``learner.steps`` or ``learner.max_tokens``, until nothing is learned, or stopped.

        Returns the summary.

        Raises:
            Superseded: a newer learner has taken over the run.
            Unreachable: Redis was out for ``redis.patience_s``; a checkpoint has been written.
            Unauthenticated, Forbidden: Redis does not accept this learner; likewise.
        """
        outstanding = await self._start()
        if not self._is_done:
            self._parts.record_settings()
        directory, settings = self._parts.directory, self._parts.settings
        journal = Journal(directory.journal, self._epoch, settings.checkpoint.journal_keep_batches)
        metrics = MetricsLog(directory.metrics, self._num_steps, self._section.tensorboard)
        self._watch.resume(directory.read_metrics(), self._is_done)
        learning = asyncio.create_task(self._learn(outstanding, journal, metrics))
        loops = (
            self._publisher.run(),
            self._work.intake(self._epoch),
            self._guard(),
            self._depths.run(),
        )
        background = [asyncio.create_task(loop) for loop in loops]
        try:
            await self._until_over(learning, background)
            summary = await self._summary()
            if self._section.stay and not self._stop.is_set() and not self._failure:
                directory.write_summary(summary)
                await self._stay(background)
            return summary
        except Superseded:
            raise  # the run belongs to another learner, and its directory may too
        except Exception:
            await end((learning, *background))
            await self._save_before_failing()
            raise
        finally:
            await end((learning, *background))
            metrics.close()

    def describe(self) -> dict[str, object]:
        """The run's current epoch, step and version, for the ops port."""
        return {
            "run_id": self._run_id,
            "epoch": self._epoch,
            "step": self._num_steps,
            "version": self._learner.version,
        }

    def export(self, registry: CollectorRegistry) -> None:
        """Register the run's metrics."""
        StepMetrics(registry, self._counts, self.describe)
        TaskMetrics(registry, self._tasks, self._work, self._depths)
        PushMetrics(registry, self._publisher)
        ReplayMetrics(registry, self._checks)

    async def _start(self) -> Sequence[Task]:
        """Resume from the latest checkpoint, if any; start a new epoch, publish; returns its tasks."""
        checkpoint = self._parts.directory.latest_checkpoint()
        outstanding: Sequence[Task] = ()
        if checkpoint is not None:
            progress, outstanding = load_checkpoint(checkpoint, self._learner)
            self._restore(progress)
        self._run_id = self._feed.run_id = self._parts.directory.run_id(self._run_id)
        newest = max(self._epoch, self._parts.directory.newest_epoch())
        self._epoch = await self._retry(lambda: self._broker.new_epoch(newest + 1))
        self._parts.directory.note_epoch(self._epoch)
        await self._retry(self._broker.clear_work)
        await self._retry(self._announce)  # replicas ask who pushes
        await self._publish(with_baseline=True)
        log.info("epoch %d starts at step %d", self._epoch, self._num_steps)
        return outstanding

    async def _learn(
        self, outstanding: Sequence[Task], journal: Journal, metrics: MetricsLog
    ) -> None:
        settings, phase = self._parts.settings, self._counts.phase
        now = {"epoch": self._epoch, "version": self._learner.version}
        await self._work.resume(outstanding, self._next_task_id, **now)
        await self._work.admit_after(self._num_steps, **now)
        while not (self._is_done or self._failure):
            with phase("wait"):
                results = await self._work.take(self._num_steps, self._stop, self._replacing())
            if results is None:
                return  # stopped: does not wait for replicas to catch up either
            try:
                with phase("learn"):
                    await uninterrupted(self._step(results))
                with phase("publish"):
                    await self._publish(
                        self._num_steps % settings.baseline.publish_every_steps == 0
                    )
                with phase("admit"):
                    await self._work.admit_after(
                        self._num_steps, epoch=self._epoch, version=self._learner.version
                    )
            finally:
                self._record(journal, metrics)
            if self._num_steps % settings.checkpoint.every_steps == 0:
                with phase("checkpoint"):
                    await self._save()
            if not self._is_done:
                await self._checks.wait_for_sound()
        if not self._failure:
            await self._wait_for_replicas()

    @property
    def _failure(self) -> str:
        return self._checks.failure or self._watch.failure(self._is_done)

    async def _step(self, results: list[ScoredRollout]) -> None:
        batch = self._num_steps
        results = await self._checks.checked(results)
        report = await asyncio.to_thread(self._train_step.run, results, batch + 1)
        self._num_steps += 1
        self._num_tokens += report.result.num_tokens
        self._unrecorded = _Step(batch, results, report)

    def _record(self, journal: Journal, metrics: MetricsLog) -> None:
        """Journal and report the step just made, if any, even if Redis was lost right after it."""
        if self._unrecorded is None:
            return
        step, self._unrecorded = self._unrecorded, None
        with self._counts.phase("journal"):
            journal.append(step.batch, self._learner.version, step.results)
        self._report(metrics, step.batch, step.results, step.report)

    async def _until_over(
        self, learning: asyncio.Task[None], background: Sequence[asyncio.Task[None]]
    ) -> None:
        """Wait for the last step, or for the step at which the run is stopped."""
        try:
            await first_failure(background, main=learning)
        except Unreachable as error:
            if not self._stop.is_set():
                raise
            log.warning("stopping without Redis: %s", error)
            await asyncio.wait((learning,))  # it finishes its step
            failure = learning.exception()
            if failure is not None and not isinstance(failure, Unreachable):
                raise failure from None

    async def _save_before_failing(self) -> None:
        """Write a checkpoint, unless a step was interrupted or there was none."""
        if self._num_steps == self._num_steps_before:
            return
        if not self._work.holds_all_since(self._num_steps):
            log.error("the last step was interrupted; resume from the checkpoint before it")
            return
        try:
            log.error("the run fails; its last step is in %s", await self._save())
        except InvalidInput as error:
            log.error("the run fails without its last steps: %s", error)
        except Exception:
            log.exception("the run fails, and no checkpoint can be written")

    @property
    def _is_done(self) -> bool:
        return self._section.is_done(self._num_steps, self._num_tokens)

    def _replacing(self) -> Replacing | None:
        """How tasks of the next step's batch are replaced, from ``filter.replace_from_step`` on."""
        section = self._parts.settings.filter
        if not 0 < section.replace_from_step <= self._num_steps + 1:
            return None
        rounds, version = section.replace_rounds, self._learner.version
        return Replacing(self._train_step.builder.keeps, rounds, self._epoch, version)

    async def _wait_for_replicas(self) -> None:
        """At the end of the run, wait until every replica serves the learner's version."""
        timeout_s = self._parts.settings.publish.push_timeout_s
        late = await run_until(self._stop, self._publisher.wait_until_current(timeout_s))
        if late:
            log.warning("replicas still behind at the end: %s", ", ".join(late))

    async def _stay(self, background: Sequence[asyncio.Task[None]]) -> None:
        """Keep pushing the final weights to replicas that join, until stopped."""
        log.info("step %d was the last; serving weights to replicas that join", self._num_steps)

        async def stopped() -> None:
            await self._stop.wait()

        staying = asyncio.create_task(stopped())
        try:
            await first_failure(background, main=staying)
        finally:
            await end((staying,))

    async def _guard(self) -> None:
        """Detect a newer learner, and a Redis that may have lost data."""
        instance_id = await self._retry(self._broker.instance_id)
        while True:
            await asyncio.sleep(GUARD_S)  # polling: Redis offers nothing to block on here
            newest = await self._retry(lambda: self._broker.restore_epoch(self._epoch))
            if newest > self._epoch:
                raise Superseded(
                    f"epoch {newest} has taken over run {self._parts.settings.run.name!r} from "
                    f"epoch {self._epoch}; this learner stops"
                )
            seen_id = instance_id
            instance_id = await self._retry(self._broker.instance_id)
            if seen_id != instance_id:
                await self._retry(self._announce)
                await self._work.re_enqueue()

    async def _publish(self, with_baseline: bool) -> None:
        """Publish the learner's weights; senders push them to the replicas."""
        payloads: list[tuple[str, Callable[[], bytes]]] = [("policy", self._learner.policy_payload)]
        if with_baseline and "baseline" in self._models:
            payloads.append(("baseline", self._learner.baseline_payload))
        for model, payload in payloads:
            weights = await asyncio.to_thread(payload)
            snapshot = await asyncio.to_thread(
                make_snapshot,
                model,
                self._epoch,
                self._learner.version,
                self._parts.settings.model.dtype,
                self._model_files,
                weights,
                self._run_id,
            )
            self._publisher.publish(snapshot)
        await self._retry(self._announce)

    async def _announce(self, state: str = "training") -> None:
        await self._broker.set_run(
            self._epoch,
            {
                "run": self._parts.settings.run.name,
                "objective": self._parts.settings.objective.name,
                "run_id": self._run_id,
                "state": state,
                **({"failure": self._failure} if state == "failed" else {}),
                "version": self._learner.version,
                "step": self._num_steps,
                "steps": self._section.steps,
                "batch_tasks": self._section.batch_tasks,
                "max_staleness": self._section.max_staleness,
                "models": list(self._models),
                "wire_version": wire.WIRE_VERSION,
                **({"quarantined": dict(unsound)} if (unsound := self._publisher.unsound) else {}),
            },
        )

    def _report(
        self,
        metrics: MetricsLog,
        batch: int,
        results: Sequence[ScoredRollout],
        report: StepReport,
    ) -> None:
        """Write the step's values to the metrics log, the counters and the alarms."""
        self._tasks.close(batch, results)
        values = self._watch.see(self._num_steps, self._values(batch, results, report))
        self._counts.close(values, report.result.num_tokens)
        taken = self._counts.newest_phase_s
        metrics.write(self._num_steps, values | {"wait_s": taken["wait"], "step_s": taken["learn"]})

    def _values(
        self, batch: int, results: Sequence[ScoredRollout], report: StepReport
    ) -> dict[str, Any]:
        return {
            "batch": batch,
            "version": self._learner.version,
            "epoch": self._epoch,
            **step_values(results, report),
            "tasks_admitted": self._work.num_admitted,
            "results_ignored": self._work.num_ignored,
            "results_refused": self._work.num_refused,
            "positions_unpredictable": self._work.num_unpredictable,
            "num_replicas": len(self._publisher.state()),
            **self._checks.values(),
            "tokens": self._num_tokens,
        }

    def _restore(self, progress: Progress) -> None:
        if progress.batch_tasks != self._section.batch_tasks:
            raise InvalidInput(
                f"the checkpoint's batches have {progress.batch_tasks} tasks, learner.batch_tasks is "
                f"{self._section.batch_tasks}; a run keeps its batch size: set it back, or choose "
                "another run.directory"
            )
        self._parts.corpus.seek(CorpusCursor.from_json(progress.cursor))
        self._run_id, self._epoch = progress.run_id, progress.epoch
        self._num_steps = self._num_steps_before = progress.num_steps
        self._next_task_id = progress.next_task_id
        self._num_tokens, self._seconds_before = progress.num_tokens, progress.seconds

    async def _save(self) -> str:
        progress = Progress(
            epoch=self._epoch,
            num_steps=self._num_steps,
            batch_tasks=self._section.batch_tasks,
            version=self._learner.version,
            num_optimizer_steps=self._learner.num_optimizer_steps,
            next_task_id=self._work.num_admitted,
            num_tokens=self._num_tokens,
            seconds=self._seconds(),
            cursor=self._parts.corpus.cursor.to_json(),
            run_id=self._run_id,
            warmup=dict(self._parts.warmup),
        )
        checkpoint = await asyncio.to_thread(
            save_checkpoint,
            self._parts.directory,
            self._learner,
            progress,
            self._work.outstanding,
            self._parts.settings.checkpoint.keep,
        )
        return str(checkpoint)

    async def _summary(self) -> dict[str, Any]:
        checkpoint = await self._save()
        replicas = await self._announce_end()
        kept = first_kept_batch(
            self._num_steps, self._parts.settings.checkpoint.journal_keep_batches
        )
        counts = audit(
            self._parts.directory.journal,
            self._num_steps * self._section.batch_tasks,
            kept * self._section.batch_tasks,
        )
        return {
            "steps": self._num_steps,
            "done": self._is_done and not self._failure,
            **({"failure": self._failure} if self._failure else {}),
            "policy_version": self._learner.version,
            "run_id": self._run_id,
            "epoch": self._epoch,
            "replicas": {
                replica.replica_id: {"kind": replica.kind, "serving": replica.serving}
                for replica in replicas
            },
            "tasks_admitted": self._work.num_admitted,
            "tasks_trained": counts.num_trained,
            "tasks_failed": counts.num_failed,
            "tasks_replaced": counts.num_replaced,
            "lost": counts.num_lost,
            "duplicated": counts.num_duplicated,
            "tokens": self._num_tokens,
            "seconds": self._seconds(),
            "checkpoint": checkpoint,
        }

    async def _announce_end(self) -> list[Replica]:
        """Announce the end; returns the replicas, none if Redis is out and the run was stopped."""
        try:
            await self._retry(lambda: self._announce("failed" if self._failure else "stopped"))
            return await self._retry(self._broker.replicas)
        except Unreachable as error:
            if not self._stop.is_set():
                raise
            log.warning("the end is not announced: %s", error)
            return []

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started_s
