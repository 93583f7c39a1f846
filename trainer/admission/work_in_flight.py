"""The learner's work in flight: tasks it has admitted, results it is waiting for.

Batch k is exactly tasks kN … (k+1)N-1. N(1+S) tasks are admitted at start and N after every batch, S
being ``learner.max_staleness``, so batch k is admitted once batch k-1-S is closed, and a sampled token
is at most S versions old (plus the next-token steps in between, if there are any). No task is admitted for
a batch after the last step, so a finished run has none outstanding. Dynamic sampling admits further tasks
of the current batch (:mod:`trainer.admission.replacement`). Before a batch is closed, the watermark is
raised above it, so that replicas drop what is left of it.

    loop     consumes           produces          waits for     unblocked by
    intake   stream `scored`    results (ledger)  a delivery    reward replicas
    take     a batch's results  -                 all of them   results, their deadline, stop
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from forethought import wire
from forethought.background import Retry, run_until
from forethought.config.sections import LearnerSection
from forethought.errors import InvalidInput, Superseded, Unreachable
from forethought.queue.interface import (
    Broker,
    Consumer,
    ConsumerOptions,
    Delivery,
    Message,
    Stage,
    Watermark,
)
from forethought.types import Rollout, ScoredRollout, Task, attempt_of
from trainer.admission.feed import TaskFeed
from trainer.admission.ledger import Ledger, Pushes
from trainer.admission.replacement import Replacing
from trainer.admission.verification import Verification

log = logging.getLogger(__name__)

_PUT_TASKS = 64
_RECEIVE_TASKS = 64
_RECEIVE_S = 1.0
_LEASE_S = 60.0


class WorkInFlight:
    """Task feed, ledger and the learner's two streams (`tasks` and `scored`).

    ``retry`` decides how long the broker may be unreachable; ``pushes`` tells which weights are on their
    way (default: none).
    """

    def __init__(
        self,
        broker: Broker,
        feed: TaskFeed,
        section: LearnerSection,
        verification: Verification,
        retry: Retry | None = None,
        pushes: Pushes | None = None,
    ) -> None:
        self._broker, self._feed, self._section = broker, feed, section
        self._verification = verification
        self._retry = retry or Retry()
        self._ledger = Ledger(section.task_timeout_s, pushes)
        self._watermark = Watermark()
        self.num_refused = 0  # results that did not fit their tasks, which they failed

    @property
    def num_admitted(self) -> int:
        """Tasks admitted so far in the whole run, excluding replacements."""
        return self._feed.next_task_id

    @property
    def num_put(self) -> int:
        """Tasks admitted by this process, including those of its checkpoint."""
        return self._ledger.num_admitted

    @property
    def num_outstanding(self) -> int:
        """Admitted tasks whose results have not been consumed."""
        return self._ledger.num_outstanding

    @property
    def num_expired(self) -> int:
        """Tasks failed because their deadline passed."""
        return self._ledger.num_expired

    @property
    def num_unpredictable(self) -> int:
        """Positions that were not drawn because their target cannot be predicted."""
        return self._feed.num_unpredictable

    @property
    def num_ignored(self) -> int:
        """Results ignored as duplicate, late or of another epoch."""
        return self._ledger.num_ignored

    @property
    def outstanding(self) -> list[Task]:
        """The tasks a checkpoint has to include, in id order."""
        return self._ledger.outstanding

    def holds_all_since(self, num_closed: int) -> bool:
        """Whether every task admitted for a batch after the first ``num_closed`` is outstanding.

        Only then does a checkpoint lose none.
        """
        first = num_closed * self._section.batch_tasks
        ids = [task.task_id for task in self.outstanding if not attempt_of(task.task_id)]
        return ids == list(range(first, self._feed.next_task_id))

    async def resume(
        self, outstanding: Sequence[Task], next_task_id: int, *, epoch: int, version: int
    ) -> None:
        """Re-admit a checkpoint's outstanding tasks under a new epoch; earlier epochs are closed."""
        self._feed.next_task_id = next_task_id
        first_open_id = min((task.task_id for task in outstanding), default=next_task_id)
        await self._raise_watermark(Watermark(epoch, first_open_id))
        await self._admit(self._feed.adopt(outstanding, epoch=epoch, min_version=version))

    async def admit_after(self, num_closed: int, *, epoch: int, version: int) -> None:
        """Admit whole batches until 1+S of them are open after ``num_closed`` closed ones."""
        num_batches = min(num_closed + 1 + self._section.max_staleness, self._section.steps)
        missing = max(0, num_batches * self._section.batch_tasks - self._feed.next_task_id)
        await self._admit(self._feed.take(missing, epoch=epoch, min_version=version))

    async def re_enqueue(self) -> None:
        """Re-enqueue every task without a result, after Redis may have lost data."""
        unanswered = self._ledger.unanswered
        log.warning("Redis may have lost data; re-enqueueing %d tasks", len(unanswered))
        await self._raise_watermark(self._watermark)
        self._ledger.restart_clocks()
        await self._put(unanswered)

    async def take(
        self, batch: int, stop: asyncio.Event, replacing: Replacing | None = None
    ) -> list[ScoredRollout] | None:
        """All results of a batch in id order, or None if ``stop`` is set first.

        With ``replacing``, tasks that the filters reject are replaced first; all attempts are returned.
        """
        if stop.is_set():
            return None
        return await run_until(stop, self._complete(batch, replacing))

    async def _complete(self, batch: int, replacing: Replacing | None) -> list[ScoredRollout]:
        results = await self._ledger.complete_batch(batch)
        # Results stay in the ledger until the batch closes: a checkpoint in between keeps every attempt.
        while replacing and (wasted := replacing.wasted(results)):
            log.info("batch %d: replacing %d tasks without learning signal", batch, len(wasted))
            now = {"epoch": replacing.epoch, "min_version": replacing.version}
            await self._admit(self._feed.replace(wasted, **now))
            results = await self._ledger.complete_batch(batch)
        # Before the ledger forgets the batch: if this is cancelled, its results are still outstanding.
        first_open_id = (batch + 1) * self._section.batch_tasks
        await self._raise_watermark(Watermark(self._watermark.epoch, first_open_id))
        return await self._ledger.close_batch(batch)

    async def intake(self, epoch: int) -> None:
        """Move results from Redis into the ledger until cancelled.

        Raises:
            Superseded: results of a newer epoch arrived; they are released for that epoch's learner.
        """
        consumer = self._broker.consumer(
            ConsumerOptions(
                stage=Stage.SCORED,
                result_stage=None,
                name=f"learner-{epoch}",
                lease_s=_LEASE_S,
                max_attempts=1,
            )
        )
        while True:
            deliveries = await self._retry(partial(self._receive, consumer))
            newest = max((delivery.message.epoch for delivery in deliveries), default=0)
            # An epoch that was never taken is a replica's mistake; its result is ignored below.
            if newest > epoch and await self._retry(self._broker.current_epoch) > epoch:
                for delivery in deliveries:
                    await self._retry(partial(consumer.release, delivery))
                raise Superseded(
                    f"epoch {newest} has taken over the run from epoch {epoch}; this learner stops"
                )
            for delivery in deliveries:
                # Acked at once: the task stays outstanding until a checkpoint includes its batch.
                self._accept(delivery.message)
                await self._retry(partial(consumer.discard, delivery))

    async def _receive(self, consumer: Consumer) -> list[Delivery]:
        try:
            return await consumer.receive(_RECEIVE_TASKS, _RECEIVE_S)
        except Unreachable:
            self._ledger.restart_clocks()  # no result can arrive meanwhile
            raise

    def _accept(self, message: Message) -> None:
        task = self._ledger.awaiting(message.task_id, message.epoch)
        if task is None:
            return
        try:
            result = self._verification.verified(message, task)
        except InvalidInput as error:
            self.num_refused += 1
            result = ScoredRollout(Rollout(task), error=str(error))
        self._ledger.accept(result)

    async def _admit(self, tasks: Sequence[Task]) -> None:
        self._ledger.admit(tasks)
        await self._put(tasks)

    async def _raise_watermark(self, watermark: Watermark) -> None:
        self._watermark = watermark
        await self._retry(lambda: self._broker.raise_watermark(watermark))

    async def _put(self, tasks: Sequence[Task]) -> None:
        in_order = sorted(tasks, key=lambda task: (task.batch, task.task_id))
        messages = [Message(t.task_id, t.epoch, wire.encode_task(t)) for t in in_order]
        for start in range(0, len(messages), _PUT_TASKS):  # an outage repeats no more than these
            chunk = messages[start : start + _PUT_TASKS]
            await self._retry(partial(self._broker.put, Stage.TASKS, chunk))
