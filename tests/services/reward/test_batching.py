"""The line in front of the compute thread: packing, order, fairness, cancellation, overload."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from forethought.errors import ForethoughtError, NotReady, Overloaded, status_of
from services.reward.batching import Batcher, Piece


class Thread:
    """Stands for the compute thread: each batch waits until the test lets it go."""

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

    def let_go(self, num_batches: int = 1) -> None:
        for _ in range(num_batches):
            self._go.release()


def ask(
    batcher: Batcher[str, str], *jobs: str, num_tokens: int = 10
) -> asyncio.Task[Sequence[str]]:
    return asyncio.create_task(batcher.submit([Piece(job, num_tokens) for job in jobs]))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_arrives_while_the_thread_is_busy_is_computed_together() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=30, max_waiting_tokens=1000)
    first = ask(batcher, "a")
    await thread.started.wait()
    others = [ask(batcher, job) for job in "bcde"]
    await settle()
    thread.let_go(3)
    assert [await task for task in (first, *others)] == [["A"], ["B"], ["C"], ["D"], ["E"]]
    assert thread.batches == [["a"], ["b", "c", "d"], ["e"]]
    assert batcher.num_waiting_tokens == 0


async def test_a_job_over_the_budget_is_a_batch_of_its_own_and_nobody_overtakes_it() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=30, max_waiting_tokens=10_000)
    tasks = [ask(batcher, "a"), ask(batcher, "huge", num_tokens=500), ask(batcher, "b")]
    await settle()
    thread.let_go(3)
    await asyncio.gather(*tasks)
    assert thread.batches == [["a"], ["huge"], ["b"]]


async def test_a_large_request_shares_the_thread_with_small_ones() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=1000)
    large = ask(batcher, "l0", "l1", "l2")
    await thread.started.wait()
    small = [ask(batcher, job) for job in ("s0", "s1")]
    await settle()
    thread.let_go(5)
    await asyncio.gather(large, *small)
    assert thread.batches == [["l0"], ["s0"], ["s1"], ["l1"], ["l2"]]
    assert large.result() == ["L0", "L1", "L2"]


async def test_a_caller_that_gives_up_takes_its_work_out_of_the_line() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=1000)
    first = ask(batcher, "a")
    await thread.started.wait()
    gone, also_gone, stays = ask(batcher, "b", "c"), ask(batcher, "d"), ask(batcher, "e")
    await settle()
    assert batcher.num_waiting_tokens == 50
    gone.cancel()
    also_gone.cancel()
    await settle()
    assert batcher.num_waiting_tokens == 20
    thread.let_go(2)
    await asyncio.gather(first, stays)
    assert thread.batches == [["a"], ["e"]]


async def test_giving_up_during_the_own_batch_harms_no_neighbour() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=100, max_waiting_tokens=1000)
    tasks = [ask(batcher, job) for job in "ab"]
    await thread.started.wait()
    tasks[0].cancel()
    await settle()
    thread.let_go()
    assert await tasks[1] == ["B"]
    assert batcher.num_waiting_tokens == 0


async def test_a_defect_fails_only_the_job_that_has_it() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=100, max_waiting_tokens=1000)
    tasks = [ask(batcher, job) for job in ("a", "bad", "c")]
    await settle()
    thread.let_go(4)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == ["A"]
    assert isinstance(results[1], KeyError)
    assert results[2] == ["C"]


async def test_too_much_in_line_is_refused_with_a_time_to_come_back() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=100, max_waiting_tokens=100)
    first = ask(batcher, "a", num_tokens=500)  # nothing is in line: served, however large
    await thread.started.wait()
    with pytest.raises(Overloaded, match="500 tokens are waiting") as refused:
        await batcher.submit([Piece("b", 1)])
    assert refused.value.retry_after_s >= 1
    assert status_of(refused.value).http_status == 429
    assert status_of(refused.value).grpc_code == "RESOURCE_EXHAUSTED"
    assert issubclass(Overloaded, ForethoughtError)
    thread.let_go(2)
    await first
    assert await batcher.submit([Piece("c", 1)]) == ["C"]


async def test_the_time_to_come_back_is_of_the_measured_rate() -> None:
    now_s = 0.0
    hold = asyncio.Event()

    async def run(jobs: list[str]) -> list[str]:
        nonlocal now_s
        if "hold" in jobs:
            await hold.wait()
        now_s += 1.0
        return jobs

    batcher = Batcher(run, max_batch_tokens=100, max_waiting_tokens=200, clock=lambda: now_s)
    await batcher.submit([Piece("a", 50)])  # 50 tokens in a second
    held = ask(batcher, "hold", num_tokens=150)
    await settle()
    with pytest.raises(Overloaded) as refused:
        await batcher.submit([Piece("b", 300)])
    assert refused.value.retry_after_s == 5  # 250 tokens too many
    hold.set()
    await held


async def test_deterministic_means_one_job_at_a_time() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, 1000, 1000, one_at_a_time=True)
    tasks = [ask(batcher, job) for job in "abc"]
    await settle()
    thread.let_go(3)
    await asyncio.gather(*tasks)
    assert thread.batches == [["a"], ["b"], ["c"]]


async def test_closing_refuses_who_waits_and_lets_the_batch_in_hand_end() -> None:
    thread = Thread()
    batcher = Batcher(thread.run, max_batch_tokens=10, max_waiting_tokens=1000)
    first, half, waiting = ask(batcher, "a"), ask(batcher, "b", "c"), ask(batcher, "d")
    await thread.started.wait()
    closing = asyncio.create_task(batcher.close())
    await settle()
    for refused in (half, waiting, ask(batcher, "e")):
        with pytest.raises(NotReady, match="stopping"):
            await refused
    thread.let_go()
    await closing
    assert await first == ["A"]
    assert thread.batches == [["a"]]
