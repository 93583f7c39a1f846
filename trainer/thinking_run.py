"""A run with thoughts: the learner's end of the walk of data.

    close batch -> trees -> step -> publish -> admit -> journal -> metrics -> checkpoint

Batch k is exactly tasks kN … (k+1)N-1. N(1+S) tasks are admitted at start and N after every batch, S
being ``learner.max_staleness``, so batch k is admitted once batch k-1-S is closed, and a sampled token
is at most S versions old. Every batch closes and advances the version.

    loop        consumes              produces             waits for           unblocked by
    _learn      a batch's results     weights, tasks,      the whole batch     results, deadlines,
                                      journal, checkpoint                      stop
    _intake     stream `scored`       results (ledger)     a delivery          reward replicas
    _guard      broker.life()         tasks put again      guard_s             the clock
    publisher   newest weights        pushes               see publisher       publish
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from forethought import estimators, wire
from forethought.background import end, first_failure
from forethought.corpus.mixture import CorpusCursor
from forethought.errors import InvalidInput, Superseded, Unreachable
from forethought.queue.interface import Broker, Message, Stage
from forethought.types import ScoredRollout, Task
from forethought.weights.snapshot import make_snapshot
from trainer.assembly import Assembly
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.feed import TaskFeed
from trainer.journal import Journal, audit
from trainer.learner import StepResult
from trainer.ledger import Ledger
from trainer.metrics import MetricsLog, rollout_metrics
from trainer.publisher import Publisher
from trainer.thought_tree import trees_of_results

log = logging.getLogger(__name__)

T = TypeVar("T")
GUARD_S = 1.0
"""How often the learner asks whether Redis may have lost something, and whether it still owns the run."""


class ThinkingRun:
    """Admits tasks, learns their batches and publishes every version."""

    def __init__(self, parts: Assembly, broker: Broker, stop: asyncio.Event) -> None:
        assert parts.markers is not None
        settings = parts.settings
        self._parts, self._broker, self._stop = parts, broker, stop
        self._section = settings.learner
        self._feed = TaskFeed(
            parts.corpus, parts.objective, parts.markers, settings, models_needed(parts)
        )
        self._ledger = Ledger(self._section.task_timeout_s)
        self._publisher = Publisher(broker.replicas, settings.publish, GUARD_S)
        self._estimator = estimators.load(parts.objective.estimator)
        self._model_files = parts.model_files()
        self._epoch = 0
        self._num_steps = 0
        self._num_tokens = 0
        self._seconds_before = 0.0
        self._started_s = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """Train until ``learner.steps`` batches are closed or the stop event is set.

        Returns the summary.

        Raises:
            Superseded: a newer learner took the run.
        """
        await self._start()
        learning = asyncio.create_task(self._learn_and_bring_up())
        loops = (self._publisher.run(), self._intake(), self._guard())
        background = [asyncio.create_task(loop) for loop in loops]
        try:
            await first_failure(background, main=learning)
            return await self._summary()
        finally:
            await end((learning, *background))

    def describe(self) -> dict[str, object]:
        """Where the run stands, for the ops port."""
        version = self._parts.learner.version
        return {"epoch": self._epoch, "step": self._num_steps, "version": version}

    async def _start(self) -> None:
        """Resume if there is something to resume, take a new epoch, publish, admit again."""
        checkpoint = self._parts.directory.latest_checkpoint()
        outstanding: Sequence[Task] = ()
        if checkpoint is not None:
            progress, outstanding = load_checkpoint(checkpoint, self._parts.learner)
            self._restore(progress)
        self._epoch = await self._broker.new_epoch(self._epoch + 1)
        await self._broker.clear_work()
        directory, settings = self._parts.directory, self._parts.settings
        self._journal = Journal(
            directory.journal, self._epoch, settings.checkpoint.journal_keep_batches
        )
        self._metrics = MetricsLog(directory.metrics, self._num_steps, self._section.tensorboard)
        await self._publish(with_baseline=True)
        await self._admit(
            self._feed.adopt(outstanding, epoch=self._epoch, min_version=self._version)
        )
        await self._admit_up_to(self._num_steps + 1 + self._section.max_staleness)
        log.info("epoch %d starts at step %d", self._epoch, self._num_steps)

    async def _learn(self) -> None:
        while self._num_steps < self._section.steps:
            waited_s = time.monotonic()
            results = await self._next_batch()
            if results is None:
                return
            started_s = time.monotonic()
            trees = trees_of_results(results, self._parts.objective, self._estimator)
            result = await asyncio.to_thread(self._parts.learner.step, trees)
            batch, self._num_steps = self._num_steps, self._num_steps + 1
            self._num_tokens += result.num_tokens
            learned_s = time.monotonic()
            await self._publish(self._num_steps % self._publish_every == 0)
            await self._admit_up_to(self._num_steps + 1 + self._section.max_staleness)
            self._journal.append(batch, self._version, results)
            times = {"wait_s": started_s - waited_s, "step_s": learned_s - started_s}
            self._metrics.write(self._num_steps, self._values(batch, results, result, times))
            if self._num_steps % self._parts.settings.checkpoint.every_steps == 0:
                await self._save()

    async def _learn_and_bring_up(self) -> None:
        """Learn to the end; then every replica is to serve the learner's version."""
        await self._learn()
        if self._stop.is_set():
            return  # somebody is waiting for us to go
        timeout_s = self._parts.settings.publish.push_timeout_s
        if late := await self._publisher.wait_until_current(timeout_s):
            log.warning("replicas still behind at the end: %s", ", ".join(late))

    async def _next_batch(self) -> list[ScoredRollout] | None:
        """The next batch's results, or None when asked to stop first."""
        if self._stop.is_set():
            return None
        closing = asyncio.create_task(self._ledger.close_batch(self._num_steps))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((closing, stopping), return_when=asyncio.FIRST_COMPLETED)
            return closing.result() if closing.done() else None
        finally:
            closing.cancel()
            stopping.cancel()

    async def _intake(self) -> None:
        consumer = self._broker.consumer(
            stage=Stage.SCORED,
            result_stage=None,
            name=f"learner-{self._epoch}",
            lease_s=60.0,
            max_attempts=3,
        )
        while True:
            for delivery in await self._insist(lambda: consumer.receive(64, GUARD_S)):
                # Acknowledged at once: until its batch is in a checkpoint, the task is outstanding.
                self._ledger.accept(wire.decode_scored(delivery.message.body))
                await self._insist(partial(consumer.discard, delivery))

    async def _guard(self) -> None:
        """Notice a newer learner, and a Redis that may have lost something."""
        life = await self._insist(self._broker.life)
        while True:
            await asyncio.sleep(GUARD_S)  # a poll by nature: Redis has nothing to wait on here
            newest = await self._insist(lambda: self._broker.restore_epoch(self._epoch))
            if newest > self._epoch:
                raise Superseded(
                    f"epoch {newest} has taken over run {self._parts.settings.run.name!r} from epoch "
                    f"{self._epoch}; this learner stops"
                )
            seen, life = life, await self._insist(self._broker.life)
            if seen != life:
                unanswered = self._ledger.unanswered
                log.warning("Redis may have lost data; admitting %d tasks again", len(unanswered))
                await self._insist(self._announce)
                await self._put(unanswered)

    async def _publish(self, with_baseline: bool) -> None:
        """Make the learner's weights the newest; senders bring them to the replicas."""
        learner = self._parts.learner
        payloads: list[tuple[str, Callable[[], bytes]]] = [("policy", learner.policy_payload)]
        if with_baseline and "baseline" in self._feed.models:
            payloads.append(("baseline", learner.baseline_payload))
        dtype = self._parts.settings.model.dtype
        for model, payload in payloads:
            weights = await asyncio.to_thread(payload)
            self._publisher.publish(
                make_snapshot(model, self._epoch, self._version, dtype, self._model_files, weights)
            )
        await self._insist(self._announce)

    async def _admit_up_to(self, num_batches: int) -> None:
        """Admit whole batches until ``num_batches`` are admitted, and none beyond the last step."""
        goal = min(num_batches, self._section.steps) * self._section.batch_tasks
        missing = max(0, goal - self._feed.next_task_id)
        await self._admit(self._feed.take(missing, epoch=self._epoch, min_version=self._version))

    async def _admit(self, tasks: Sequence[Task]) -> None:
        self._ledger.admit(tasks)
        await self._put(tasks)

    async def _put(self, tasks: Sequence[Task]) -> None:
        messages = [Message(t.task_id, t.epoch, wire.encode_task(t)) for t in tasks]
        await self._insist(lambda: self._broker.put(Stage.TASKS, messages))

    async def _announce(self, state: str = "training") -> None:
        await self._broker.set_run(
            {
                "run": self._parts.settings.run.name,
                "objective": self._parts.settings.objective.name,
                "state": state,
                "epoch": self._epoch,
                "version": self._version,
                "step": self._num_steps,
                "steps": self._section.steps,
                "batch_tasks": self._section.batch_tasks,
                "max_staleness": self._section.max_staleness,
                "models": list(self._feed.models),
                "wire_version": wire.WIRE_VERSION,
            }
        )

    async def _insist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do ``act`` until Redis can be reached; everything asked for this way is idempotent."""
        pause_s = 0.1
        while True:
            try:
                return await act()
            except Unreachable as error:
                log.warning("%s; trying again in %.1f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)

    def _values(
        self,
        batch: int,
        results: Sequence[ScoredRollout],
        result: StepResult,
        times: dict[str, float],
    ) -> dict[str, Any]:
        num_failed = sum(r.failure is not None for r in results)
        return {
            "batch": batch,
            "version": self._version,
            "epoch": self._epoch,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "clipped_share": result.clipped_share,
            "ratio_max": result.ratio_max,
            "skipped": result.skipped,
            **rollout_metrics(results, self._version - 1),
            "tasks_admitted": self._feed.next_task_id,
            "tasks_trained": len(results) - num_failed,
            "tasks_failed": num_failed,
            "results_ignored": self._ledger.num_ignored,
            "num_replicas": len(self._publisher.state()),
            "tokens": self._num_tokens,
            **times,
        }

    def _restore(self, progress: Progress) -> None:
        if progress.batch_tasks != self._section.batch_tasks:
            raise InvalidInput(
                f"the checkpoint's batches have {progress.batch_tasks} tasks, learner.batch_tasks is "
                f"{self._section.batch_tasks}; a run keeps its batch size: set it back, or choose "
                "another run.directory"
            )
        self._parts.corpus.seek(CorpusCursor.from_json(progress.cursor))
        self._feed.next_task_id = progress.next_task_id
        self._epoch, self._num_steps = progress.epoch, progress.num_steps
        self._num_tokens, self._seconds_before = progress.num_tokens, progress.seconds

    async def _save(self) -> str:
        progress = Progress(
            epoch=self._epoch,
            num_steps=self._num_steps,
            batch_tasks=self._section.batch_tasks,
            version=self._version,
            num_optimizer_steps=self._parts.learner.num_optimizer_steps,
            next_task_id=self._feed.next_task_id,
            num_tokens=self._num_tokens,
            seconds=self._seconds(),
            cursor=self._parts.corpus.cursor.to_json(),
        )
        checkpoint = await asyncio.to_thread(
            save_checkpoint,
            self._parts.directory,
            self._parts.learner,
            progress,
            self._ledger.outstanding,
            self._parts.settings.checkpoint.keep,
        )
        return str(checkpoint)

    async def _summary(self) -> dict[str, Any]:
        checkpoint = await self._save()
        self._metrics.close()
        await self._insist(lambda: self._announce("stopped"))
        consumed = self._num_steps * self._section.batch_tasks
        counts = audit(self._parts.directory.journal, consumed)
        return {
            "steps": self._num_steps,
            "policy_version": self._version,
            "epoch": self._epoch,
            "replicas": {
                replica.replica_id: {"kind": replica.kind, "serving": replica.serving}
                for replica in await self._insist(self._broker.replicas)
            },
            "tasks_admitted": self._feed.next_task_id,
            "tasks_trained": counts.num_trained,
            "tasks_failed": counts.num_failed,
            "lost": counts.num_lost,
            "duplicated": counts.num_duplicated,
            "tokens": self._num_tokens,
            "seconds": self._seconds(),
            "checkpoint": checkpoint,
        }

    @property
    def _version(self) -> int:
        return self._parts.learner.version

    @property
    def _publish_every(self) -> int:
        return self._parts.settings.baseline.publish_every_steps

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started_s


def models_needed(parts: Assembly) -> tuple[str, ...]:
    """The likelihoods that rewards need; without a baseline, the policy scores both branches."""
    wanted = parts.objective.models
    if not parts.learner.baseline.exists:
        wanted = wanted - {"baseline"}
    return tuple(sorted(wanted))
