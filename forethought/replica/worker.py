"""The work loop shared by the rollout and reward services.

Design: one batch at a time without prefetching, so a busy replica never holds work that an idle one
could do; while deliveries wait for newer weights nothing more is received, because later tasks need
weights at least as new. The price is one round trip to the broker between batches.

A delivery waits here for at most ``weights_timeout_s``. Then it is returned to the queue for a replica
that has the weights: a replica stuck in a push must not hold up the batch its tasks belong to. A worker
whose weights are of another run returns it at once, and pauses; one that the learner has quarantined
returns all and receives none. Neither waiting nor being released counts as an attempt.

A delivery with an unfinished earlier attempt is handled on its own: if it kills its worker, no other
delivery is lost with it.

A delivery that the run's watermark has passed is dropped wherever it is: on arrival, while it waits, and
under the handler, which is cancelled once nothing in its hands is open. The price is one more read of
Redis per batch, and one per ``_FOLLOW_S`` while work is held.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from forethought.background import Outage, end, first_failure, run_until, wait_for_event
from forethought.errors import EngineHung, EngineLost, InvalidInput, Unreachable
from forethought.queue.interface import Consumer, Delivery, Message, Watermark
from forethought.replica.batch_size import BatchSize
from forethought.replica.handler import Handler, Readiness
from forethought.replica.progress import Progress
from forethought.replica.worker_counts import ANSWERED, Activity, DeliveryOutcome, WorkerCounts

log = logging.getLogger(__name__)

T = TypeVar("T")

_FOLLOW_S = 0.25
"""How often the watermark is read while work is held; far below any useful deadline of a batch."""


# Five tasks run inside ``Worker.run``:
#
#   task     consumes             produces           waits for              unblocked by
#   ------   ------------------   ----------------   --------------------   ----------------------
#   _serve   deliveries of the    results; error     a delivery             the broker, <= wait_s
#            consumer's stage     results;           newer weights          _wake, <= weights_timeout_s
#                                 released tasks     the handler            the handler
#   _watch   handler.changed()    _wake              a change of weights    the handler
#   _renew   held deliveries      renewed leases;    a third of a lease     the clock
#                                 _wake, on a loss
#   _follow  the watermark        _wake; _closed     _FOLLOW_S              the clock
#   _watch_  progress             EngineHung         hang_timeout_s / 8     the clock
#   progress
#   stop()                        _wake                                     its caller


class Worker:
    """Processes one consumer's deliveries with one handler until stopped.

    ``max_batch_tasks`` bounds how many are received and handled at once; ``wait_s`` is how long one
    receive waits, and thus how long an idle worker takes to stop; ``weights_timeout_s`` (default: one
    lease) is how long a delivery may wait here for newer weights. A handler that holds deliveries and notes
    no ``progress`` for ``hang_timeout_s`` (0: however long) is taken for hung.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        consumer: Consumer,
        max_batch_tasks: int,
        wait_s: float = 1.0,
        weights_timeout_s: float | None = None,
        progress: Progress | None = None,
        hang_timeout_s: float = 0.0,
    ) -> None:
        self._handler = handler
        self._progress, self._hang_timeout_s = progress or Progress(), hang_timeout_s
        self._consumer = consumer
        self._batch_size = BatchSize(max_batch_tasks)
        self._is_foreign = False  # the weights here are not those of the tasks last seen
        self._is_quarantined = False
        self._wait_s = wait_s
        self._weights_timeout_s = (
            consumer.options.lease_s if weights_timeout_s is None else weights_timeout_s
        )
        self._held: dict[str, Delivery] = {}  # by entry id; waiting or being worked on
        self._release_at_s = 0.0  # when waiting deliveries are returned to the queue
        self._leased_at_s = 0.0  # when the broker last confirmed our leases
        self._watermark = Watermark()
        self._in_hand: list[Delivery] = []  # the handler's
        self._closed = asyncio.Event()  # nothing in the handler's hands is open
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.counts = WorkerCounts()

    @property
    def num_done(self) -> int:
        """Results published by this worker, error results included."""
        return sum(self.counts.outcomes[outcome] for outcome in ANSWERED)

    @property
    def num_held(self) -> int:
        """Deliveries leased to this worker: waiting here or being worked on."""
        return len(self._held)

    @property
    def num_to_take(self) -> int:
        """Deliveries received at once: fewer than ``max_batch_tasks`` while none is in time."""
        return self._batch_size.now

    @property
    def num_buried(self) -> int:
        """Dead letters written by this worker, including those of deliveries out of attempts."""
        return self._consumer.num_buried

    def stop(self) -> None:
        """Drain: receive no more, finish the current batch, release the rest; then ``run`` returns.

        Cancel ``run`` to release the current batch too.
        """
        self._stopping.set()
        self._wake.set()

    def quarantine(self, is_quarantined: bool) -> None:
        """Receive nothing, and release what waits here, until this is called with False."""
        if is_quarantined != self._is_quarantined:
            self._is_quarantined = is_quarantined
            self._wake.set()

    async def run(self) -> None:
        """Serve until :meth:`stop`; survives broker outages.

        Whatever else ends it (it is cancelled, ``changed`` raises, Redis does not accept this client), held
        deliveries are released: a shutdown is no attempt.

        Raises:
            EngineLost: by the handler, or hung. The attempts at the current batch stay counted, because its
                messages may be the reason; others take it over at once.
        """
        serving = asyncio.create_task(self._serve())
        loops = [self._watch(), self._renew(), self._follow()]
        if self._hang_timeout_s:
            loops.append(self._watch_progress())
        helpers = [asyncio.create_task(loop) for loop in loops]
        try:
            await first_failure(helpers, main=serving)
        except EngineLost:
            await end((serving, *helpers))
            await self._expire_in_hand()
            raise
        finally:
            await end((serving, *helpers))
            await self._release_all()

    async def _serve(self) -> None:
        outage = Outage()
        while not self._stopping.is_set():
            try:
                await self._turn()
                outage.end()
            except EngineLost:
                raise
            except Unreachable as error:
                await wait_for_event(self._stopping, outage.note(error))
        await self._release_all()

    async def _turn(self) -> None:
        """One round: receive deliveries if none are held, sort them, then work on some or wait."""
        if not (self._held or self._is_quarantined):
            await self._receive()
        self._wake.clear()  # before checking readiness, so that no change in between is missed
        if self._is_quarantined:
            await self._release_all()
            await self._pause()
            return
        ready = await self._sort()
        if ready:
            await self._work([d for d in ready if not d.num_earlier_attempts] or ready[:1])
        elif self._held and not self._stopping.is_set():
            await self._wait_for_weights()
        elif self._is_foreign and not self._stopping.is_set():
            await self._pause()

    async def _receive(self) -> None:
        with self.counts.spending(Activity.RECEIVING):
            deliveries = await self._consumer.receive(self._batch_size.now, self._wait_s)
        self.counts.deliveries += len(deliveries)
        self.counts.redeliveries += sum(d.num_earlier_attempts > 0 for d in deliveries)
        self._leased_at_s = _now_s()
        self._release_at_s = _now_s() + self._weights_timeout_s
        self._held = {delivery.entry_id: delivery for delivery in deliveries}
        if deliveries:
            await self._read_watermark()

    async def _sort(self) -> list[Delivery]:
        """The held deliveries that are ready; closed or unreadable ones are retired."""
        ready, self._is_foreign = [], False
        for delivery in list(self._held.values()):
            if self._is_closed(delivery):
                await self._drop(delivery)
                continue
            try:
                readiness = self._handler.readiness(delivery.message)
            except Exception as error:
                log.exception("readiness check of task %d failed", delivery.message.task_id)
                await self._bury(delivery, _reason(error))
                continue
            if readiness is Readiness.READY:
                ready.append(delivery)
            elif readiness is Readiness.FOREIGN:
                self._is_foreign = True
                await self._release(delivery)
        return ready

    async def _wait_for_weights(self) -> None:
        with self.counts.spending(Activity.WAITING):
            if await wait_for_event(self._wake, self._release_at_s - _now_s()):
                return
            await self._release_all()
            await self._pause()

    async def _pause(self) -> None:
        """Back off, or this worker would receive the same tasks before a replica that can do them."""
        await wait_for_event(self._wake, self._wait_s)

    async def _work(self, deliveries: list[Delivery]) -> None:
        """Begin, handle and finish one batch; failures are published as error results."""
        begun = await asyncio.gather(*map(self._begin, deliveries))
        mine = [delivery for delivery, is_mine in zip(deliveries, begun, strict=True) if is_mine]
        if not mine:
            return
        started_s = _now_s()
        self._closed.clear()
        self._progress.note()
        self._in_hand = mine
        with self.counts.spending(Activity.WORKING):
            try:
                results = await self._handle(mine)
            except MemoryError as error:
                log.error("%s; %d tasks are to be tried one at a time", error, len(mine))
                await self._expire_in_hand()
                return
            await asyncio.gather(*map(self._conclude, mine, results))
        self._in_hand = []
        if not any(map(self._is_closed, mine)):
            self._batch_size.finished_in_time()
        self.counts.batch_seconds.add(_now_s() - started_s)

    async def _begin(self, delivery: Delivery) -> bool:
        is_mine = await self._retry(delivery, lambda: self._consumer.begin(delivery))
        if not is_mine:
            self._lost(delivery.entry_id)
        return bool(is_mine)

    async def _handle(self, deliveries: list[Delivery]) -> list[Message | str]:
        """The results in order, or a failure reason in place of each."""
        messages = [delivery.message for delivery in deliveries]
        try:
            results = await run_until(self._closed, self._handler.handle(messages))
            if results is None:
                return ["its batch is closed"] * len(messages)
            if len(results) != len(messages):
                raise RuntimeError(
                    f"the handler returned {len(results)} results for {len(messages)} messages"
                )
        except (EngineLost, MemoryError):
            raise
        except Exception as error:
            log.exception("a batch of %d tasks failed", len(messages))
            return [_reason(error)] * len(messages)
        return list(results)

    async def _conclude(self, delivery: Delivery, result: Message | str) -> None:
        if self._is_closed(delivery):
            await self._drop(delivery)
        else:
            await self._finish(delivery, result)

    def _is_closed(self, delivery: Delivery) -> bool:
        """Whether the learner has stopped waiting for its result."""
        return self._watermark.has_passed(delivery.message)

    async def _drop(self, delivery: Delivery) -> None:
        """Retire a closed delivery: the learner has recorded its error result, or superseded its epoch."""
        done = await self._retry(delivery, lambda: self._consumer.finish(delivery, None))
        self._retired(delivery, bool(done), DeliveryOutcome.DISCARDED)

    async def _finish(
        self,
        delivery: Delivery,
        result: Message | str,
        outcome: DeliveryOutcome = DeliveryOutcome.DONE,
    ) -> None:
        if isinstance(result, str):
            await self._fail(delivery, result)
            return
        try:
            done = await self._retry(delivery, lambda: self._consumer.finish(delivery, result))
        except InvalidInput as error:  # the result is too large to publish
            await self._bury(delivery, _reason(error))
        else:
            self._retired(delivery, bool(done), outcome)

    async def _fail(self, delivery: Delivery, reason: str) -> None:
        """Finish with an error result; if none can be made, dead-letter with the reason."""
        try:
            result = self._consumer.options.make_error_result(delivery.message, reason)
        except Exception:
            await self._bury(delivery, reason)
        else:
            await self._finish(delivery, result, DeliveryOutcome.FAILED)

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        done = await self._retry(delivery, lambda: self._consumer.bury(delivery, reason))
        self._retired(delivery, bool(done), DeliveryOutcome.BURIED)

    def _retired(self, delivery: Delivery, done: bool, outcome: DeliveryOutcome) -> None:
        if done:
            self._held.pop(delivery.entry_id, None)
            self.counts.outcomes[outcome] += 1
        else:
            self._lost(delivery.entry_id)
            log.info(
                "task %d was finished elsewhere or its lease was lost; its result is dropped",
                delivery.message.task_id,
            )

    def _lost(self, entry_id: str) -> bool:
        """Drop a delivery whose lease was lost; False if it was dropped before."""
        if self._held.pop(entry_id, None) is None:
            return False
        self.counts.outcomes[DeliveryOutcome.LOST] += 1
        return True

    async def _retry(self, delivery: Delivery, act: Callable[[], Awaitable[T]]) -> T | None:
        """Retry ``act`` until the broker responds; None once the lease is known to be lost."""
        outage = Outage()
        while True:
            try:
                result = await act()
                outage.end()
                return result
            except Unreachable as error:
                if not self._may_still_hold(delivery):
                    return None
                wait_s = outage.note(error)
            await asyncio.sleep(wait_s)  # no event to wait for, only time

    def _may_still_hold(self, delivery: Delivery) -> bool:
        """Whether to keep retrying: while running, until the lease is known to be lost; when stopping,
        until it must have expired, or a dead Redis would keep this process from ever stopping."""
        if (
            self._stopping.is_set()
            and _now_s() > self._leased_at_s + self._consumer.options.lease_s
        ):
            return False
        return delivery.entry_id in self._held

    async def _release_all(self) -> None:
        held = list(self._held.values())
        try:
            for delivery in held:
                await self._release(delivery)
        except Unreachable as error:
            log.warning("%s; up to %d tasks return when their leases expire", error, len(held))
        self._held.clear()

    async def _release(self, delivery: Delivery) -> None:
        self._held.pop(delivery.entry_id, None)  # first, or a renewal under way takes it for lost
        await self._consumer.release(delivery)
        self.counts.outcomes[DeliveryOutcome.RELEASED] += 1

    async def _expire_in_hand(self) -> None:
        """Give up the current batch's leases; its attempts stay counted."""
        in_hand = [delivery for delivery in self._in_hand if delivery.entry_id in self._held]
        self._in_hand = []
        try:
            await self._consumer.expire(in_hand)
        except Unreachable as error:
            log.warning("%s; %d tasks return when their leases expire", error, len(in_hand))
        for delivery in in_hand:
            self._held.pop(delivery.entry_id, None)
            self.counts.outcomes[DeliveryOutcome.RELEASED] += 1

    async def _watch_progress(self) -> None:
        while True:
            await asyncio.sleep(self._hang_timeout_s / 8)
            hung_s = time.monotonic() - self._progress.at_s
            if self._in_hand and hung_s > self._hang_timeout_s:
                raise EngineHung(
                    f"{len(self._in_hand)} tasks have not advanced for {hung_s:.0f} s (hang_timeout_s is "
                    f"{self._hang_timeout_s:g}); other replicas take them, and this process has to be "
                    "restarted"
                )

    async def _watch(self) -> None:
        while True:
            await self._handler.changed()
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_S)  # polling: the watermark is a value, not a stream
            if self._held:
                with suppress(Unreachable):  # which _renew reports
                    await self._read_watermark()

    async def _read_watermark(self) -> None:
        watermark = await self._consumer.watermark()
        if watermark == self._watermark:
            return
        num_open = self._num_open_in_hand()
        self._watermark = watermark
        self._wake.set()
        if self._num_open_in_hand() < num_open:
            self._batch_size.closed()
            if not self._num_open_in_hand():
                self._closed.set()

    def _num_open_in_hand(self) -> int:
        return sum(not self._is_closed(delivery) for delivery in self._in_hand)

    async def _renew(self) -> None:
        outage = Outage()
        while True:
            await asyncio.sleep(self._consumer.options.lease_s / 3)
            held = list(self._held.values())
            try:
                ours = await self._consumer.renew(held)
            except Unreachable as error:
                outage.note(error)
                continue
            if held:
                outage.end()
            self._leased_at_s = _now_s()
            self.counts.renewals += len(ours)
            for entry_id in {d.entry_id for d in held} - {d.entry_id for d in ours}:
                if self._lost(entry_id):
                    log.warning("the lease on entry %s was lost", entry_id)
                    self._wake.set()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _now_s() -> float:
    return asyncio.get_running_loop().time()
