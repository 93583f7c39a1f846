"""Dynamic batching for the one compute thread: packs concurrent requests into its next batch.

Design: no batching delay. While the thread is busy, requests queue up; when it is free, it takes from the
head of the queue as many pieces as fit the token budget, in FIFO order. A request larger than the budget
is split into pieces and enqueues one at a time, so a large request shares the thread with small ones
instead of blocking them; and requests of several pieces may fill only half of the queue, so that the
other half is left to small ones. The price is that the composition of a batch depends on timing (results
must not, and tests check that they agree within 1e-5) and that the pieces of one request may see two weight
versions; each result carries its own.

    loop      consumes        produces   waits for         unblocked by
    _work     the queue       results    the thread        the batch's end
    submit    its pieces      -          its results       _work
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from forethought.errors import NotReady, Overloaded
from forethought.telemetry.distribution import TOKEN_BOUNDS, WORK_BOUNDS_S, Distribution

log = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

_NEWEST_SHARE = 0.3  # EMA weight of the newest batch in the measured token rate
_MAX_RETRY_S = 600


@dataclass(frozen=True, slots=True)
class Piece(Generic[J]):
    """One job and the number of tokens in its forward passes.

    Example:
        ``Piece(job, num_tokens=312)``
    """

    job: J
    num_tokens: int


@dataclass(slots=True, eq=False)
class _Waiting(Generic[J, R]):
    piece: Piece[J]
    answer: asyncio.Future[R]


class Batcher(Generic[J, R]):
    """Packs the jobs of concurrent callers into batches, first come first served.

    Args:
        run: computes a batch, one result per job in order; never called concurrently.
        max_batch_tokens: token budget of one batch; a larger job forms a batch by itself.
        max_waiting_tokens: requests that would exceed it are refused, unless nothing is waiting; half of
            it for a request that is larger than a batch.
        one_at_a_time: never two jobs in a batch, so that shapes do not depend on timing.
        clock: monotonic seconds.

    Example:
        ``[result] = await batcher.submit([Piece(job, num_tokens=312)])``
    """

    def __init__(
        self,
        run: Callable[[list[J]], Awaitable[list[R]]],
        max_batch_tokens: int,
        max_waiting_tokens: int,
        one_at_a_time: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting_tokens = max_waiting_tokens
        self._one_at_a_time = one_at_a_time
        self._clock = clock
        self._queue: deque[_Waiting[J, R]] = deque()
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False
        self._tokens_per_s = 0.0  # measured; 0 before the first batch
        self.num_waiting_tokens = 0
        self.num_refused = 0  # requests
        self.batch_seconds = Distribution(WORK_BOUNDS_S)
        self.batch_tokens = Distribution(TOKEN_BOUNDS)

    @property
    def num_batches(self) -> int:
        """Number of batches computed."""
        return self.batch_seconds.num_values

    async def submit(self, pieces: Sequence[Piece[J]]) -> list[R]:
        """The results of a request's pieces, in order. Cancelling the call removes them from the queue.

        Raises:
            Overloaded: too many tokens are waiting already.
            NotReady: the batcher was closed.
        """
        remaining = sum(piece.num_tokens for piece in pieces)
        self._admit(remaining)
        self.num_waiting_tokens += remaining
        results: list[R] = []
        try:
            for piece in pieces:
                results.append(await self._enqueue(piece))
                remaining -= piece.num_tokens
                self.num_waiting_tokens -= piece.num_tokens
        finally:
            self.num_waiting_tokens -= remaining
        return results

    async def close(self) -> None:
        """Fail queued and later pieces with NotReady, and wait for the running batch to complete."""
        self._is_closed = True
        while self._queue:
            answer = self._queue.popleft().answer
            if not answer.done():
                answer.set_exception(_stopping())
        if self._working is not None:
            await asyncio.wait((self._working,))

    def _admit(self, num_tokens: int) -> None:
        waiting = self.num_waiting_tokens
        is_large = num_tokens > self._max_batch_tokens
        expected = self._max_waiting_tokens // 2 if is_large else self._max_waiting_tokens
        excess = waiting + num_tokens - expected
        if not waiting or excess <= 0:
            return
        self.num_refused += 1
        wait_s = excess / self._tokens_per_s if self._tokens_per_s else 1.0
        retry_s = max(1, min(_MAX_RETRY_S, math.ceil(wait_s)))
        part = "half, for a request of several batches, of " if is_large else ""
        raise Overloaded(
            f"{waiting} tokens are waiting and the request adds {num_tokens}; expected at most "
            f"{expected}, {part}reward.max_waiting_tokens; retry in "
            f"{retry_s} s",
            retry_after_s=retry_s,
        )

    async def _enqueue(self, piece: Piece[J]) -> R:
        if self._is_closed:
            raise _stopping()
        waiting: _Waiting[J, R] = _Waiting(piece, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="batcher")
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
            raise

    async def _work(self) -> None:
        try:
            while self._queue:
                await asyncio.sleep(0)  # one turn of the loop, so that ready callers enqueue first
                if batch := self._next_batch():
                    await self._compute(batch)
        finally:
            self._working = None

    def _next_batch(self) -> list[_Waiting[J, R]]:
        batch: list[_Waiting[J, R]] = []
        budget = self._max_batch_tokens
        while self._queue:
            if self._queue[0].answer.done():  # cancelled a moment ago
                self._queue.popleft()
                continue
            budget -= self._queue[0].piece.num_tokens
            if batch and (budget < 0 or self._one_at_a_time):
                break
            batch.append(self._queue.popleft())
        return batch

    async def _compute(self, batch: list[_Waiting[J, R]]) -> None:
        started_s = self._clock()
        try:
            results = await self._run([waiting.piece.job for waiting in batch])
        except Exception as error:
            await self._compute_one_by_one(batch, error)
            return
        self._measure(batch, self._clock() - started_s)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(result)

    async def _compute_one_by_one(self, batch: list[_Waiting[J, R]], error: Exception) -> None:
        """Isolate the failing job: one job must not fail the rest of its batch."""
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        log.error("a batch of %d jobs failed (%r); retrying them one by one", len(batch), error)
        for waiting in batch:
            await self._compute([waiting])

    def _measure(self, batch: list[_Waiting[J, R]], elapsed_s: float) -> None:
        num_tokens = sum(w.piece.num_tokens for w in batch)
        self.batch_seconds.add(elapsed_s)
        self.batch_tokens.add(num_tokens)
        newest = num_tokens / max(elapsed_s, 1e-6)
        share = _NEWEST_SHARE if self._tokens_per_s else 1.0
        self._tokens_per_s += share * (newest - self._tokens_per_s)


def _stopping() -> NotReady:
    return NotReady("this server is stopping; use another replica, or retry once it has restarted")
