"""The queue of the compute thread: packing, order, fairness, cancellation, overload."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from forethought.errors import ForethoughtError, NotReady, Overloaded, status_of
from services.reward.batching import Batcher, Piece


class Thread:
    """A fake compute thread: each batch blocks until the test releases it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started = asyncio.Event()
        self._go = asyncio.Semaphore(0)

    async def run(self, jobs: list[str]) -> list[str]:
        self.batches.append(jobs)
        self.started.set()
        await self._go.acquire()
        if any("bad" in job for job in jobs):
            raise KeyError("a defect")
        return [job.upper() for job in jobs]

    def release(self, num_batches: int = 1) -> None:
        for _ in range(num_batches):
            self._go.release()


def submit(
    batcher: Batcher[str, str], *jobs: str, num_tokens: int = 10
) -> asyncio.Task[Sequence[str]]:
    return asyncio.create_task(batcher.submit([Piece(job, num_tokens) for job in jobs]))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_arrives_while_the_thread_is_busy_is_computed_together() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=30, max_waiting_tokens=1000)
    first = submit(batcher, "a")
    await thread.started.wait()
    others = [submit(batcher, job) for job in "bcde"]
    await settle()
    thread.release(3)
    assert [await task for task in (first, *others)] == [["A"], ["B"], ["C"], ["D"], ["E"]]
    assert thread.batches == [["a"], ["b", "c", "d"], ["e"]]
    assert batcher.num_waiting_tokens == 0


async def test_a_job_over_the_budget_forms_a_batch_by_itself_in_fifo_order() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=30, max_waiting_tokens=10_000)
    tasks = [submit(batcher, "a"), submit(batcher, "huge", num_tokens=500), submit(batcher, "b")]
    await settle()
    thread.release(3)
    await asyncio.gather(*tasks)
    assert thread.batches == [["a"], ["huge"], ["b"]]


async def test_a_large_request_shares_the_thread_with_small_ones() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=1000)
    large = submit(batcher, "l0", "l1", "l2")
    await thread.started.wait()
    small = [submit(batcher, job) for job in ("s0", "s1")]
    await settle()
    thread.release(5)
    await asyncio.gather(large, *small)
    assert thread.batches == [["l0"], ["s0"], ["s1"], ["l1"], ["l2"]]
    assert large.result() == ["L0", "L1", "L2"]


async def test_a_cancelled_request_leaves_the_queue() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=1000)
    first = submit(batcher, "a")
    await thread.started.wait()
    gone, also_gone, stays = submit(batcher, "b", "c"), submit(batcher, "d"), submit(batcher, "e")
    await settle()
    assert batcher.num_waiting_tokens == 50
    gone.cancel()
    also_gone.cancel()
    await settle()
    assert batcher.num_waiting_tokens == 20
    thread.release(2)
    await asyncio.gather(first, stays)
    assert thread.batches == [["a"], ["e"]]


async def test_cancelling_during_its_batch_does_not_affect_the_rest_of_it() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=100, max_waiting_tokens=1000)
    tasks = [submit(batcher, job) for job in "ab"]
    await thread.started.wait()
    tasks[0].cancel()
    await settle()
    thread.release()
    assert await tasks[1] == ["B"]
    assert batcher.num_waiting_tokens == 0


async def test_a_defect_fails_only_the_job_that_has_it() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=100, max_waiting_tokens=1000)
    tasks = [submit(batcher, job) for job in ("a", "bad", "c")]
    await settle()
    thread.release(4)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == ["A"]
    assert isinstance(results[1], KeyError)
    assert results[2] == ["C"]


async def test_overload_is_refused_with_a_retry_delay() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=100, max_waiting_tokens=100)
    first = submit(batcher, "a", num_tokens=500)  # nothing is waiting: admitted, however large
    await thread.started.wait()
    with pytest.raises(Overloaded, match="500 tokens are waiting") as refused:
        await batcher.submit([Piece("b", 1)])
    assert refused.value.retry_after_s >= 1
    assert status_of(refused.value).http_status == 429
    assert status_of(refused.value).grpc_code == "RESOURCE_EXHAUSTED"
    assert issubclass(Overloaded, ForethoughtError)
    thread.release(2)
    await first
    assert await batcher.submit([Piece("c", 1)]) == ["C"]


async def test_the_retry_delay_follows_from_the_measured_rate() -> None:
    now_s = 0.0
    hold = asyncio.Event()

    async def run(jobs: list[str]) -> list[str]:
        nonlocal now_s
        if "hold" in jobs:
            await hold.wait()
        now_s += 1.0
        return jobs

    batcher = Batcher(run, max_batch_tokens=100, max_waiting_tokens=200, clock=lambda: now_s)
    await batcher.submit([Piece("a", 50)])  # 50 tokens per second
    held = submit(batcher, "hold", num_tokens=150)
    await settle()
    with pytest.raises(Overloaded) as refused:
        await batcher.submit([Piece("b", 300)])
    assert refused.value.retry_after_s == 7  # 350 too many: it may fill half of the queue
    hold.set()
    await held


async def test_deterministic_means_one_job_at_a_time() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, 1000, 1000, one_at_a_time=True)
    tasks = [submit(batcher, job) for job in "abc"]
    await settle()
    thread.release(3)
    await asyncio.gather(*tasks)
    assert thread.batches == [["a"], ["b"], ["c"]]


async def test_closing_refuses_queued_work_and_completes_the_running_batch() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=1000)
    first, half, waiting = submit(batcher, "a"), submit(batcher, "b", "c"), submit(batcher, "d")
    await thread.started.wait()
    closing = asyncio.create_task(batcher.close())
    await settle()
    for refused in (half, waiting, submit(batcher, "e")):
        with pytest.raises(NotReady, match="stopping"):
            await refused
    thread.release()
    await closing
    assert await first == ["A"]
    assert thread.batches == [["a"]]


async def test_requests_of_several_batches_leave_half_of_the_queue_to_small_ones() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=100)
    large = submit(batcher, *"abcd")
    await thread.started.wait()
    with pytest.raises(
        Overloaded,
        match="at most 50, half, for a request of several batches, of reward",
    ):
        await batcher.submit([Piece("e", 10), Piece("f", 10)])
    small = [submit(batcher, job) for job in "ghijkl"]
    await settle()
    with pytest.raises(Overloaded, match="at most 100, reward"):
        await batcher.submit([Piece("m", 10)])
    thread.release(10)
    await asyncio.gather(large, *small)
