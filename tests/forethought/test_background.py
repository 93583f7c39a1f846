"""Retrying, its end, and work that a cancellation does not interrupt."""

from __future__ import annotations

import asyncio
import logging

import pytest

from forethought import background
from forethought.background import Retry, end, uninterrupted
from forethought.errors import Unreachable


class Peer:
    """Unreachable ``num_failures`` times."""

    def __init__(self, num_failures: int) -> None:
        self.num_failures = num_failures
        self.num_calls = 0

    async def answer(self) -> str:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise Unreachable("no answer")
        return "answer"


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "backoff", lambda: iter(lambda: 0.001, None))


async def test_an_outage_is_ridden_out_and_its_end_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    retry = Retry()
    for _ in range(2):
        assert await retry(Peer(3).answer) == "answer"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2
    assert "reached again after an outage" in caplog.text


def test_an_outage_logs_each_reason_once(caplog: pytest.LogCaptureFixture) -> None:
    """A replica whose learner and Redis are gone for good would fill its log."""
    outage = background.Outage()
    for reason in ("refused", "refused", "loading", "loading", "loading"):
        outage.note(Unreachable(reason))
    found = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert found == ["refused", "loading"]


async def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(10**9)
    with pytest.raises(Unreachable, match="no answer"):
        await Retry(patience_s=0.02)(peer.answer)
    assert peer.num_calls > 1
    assert await Retry(patience_s=1e-9)(Peer(0).answer) == "answer"


async def test_a_stop_ends_an_outage_and_nothing_else() -> None:
    stop, peer = asyncio.Event(), Peer(10**9)
    retrying = asyncio.create_task(Retry(stop=stop)(peer.answer))
    await asyncio.sleep(0.01)
    assert not retrying.done()
    stop.set()
    with pytest.raises(Unreachable):
        await retrying
    assert await Retry(stop=stop)(Peer(0).answer) == "answer"


async def test_uninterrupted_work_is_done_when_the_cancellation_is_raised() -> None:
    finish, done = asyncio.Event(), []

    async def work() -> None:
        await finish.wait()
        done.append(True)

    task = asyncio.create_task(uninterrupted(work()))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.001)
    assert not task.done()
    finish.set()
    await end([task])
    assert task.cancelled()
    assert done == [True]


async def test_uninterrupted_work_returns_and_raises() -> None:
    assert await uninterrupted(Peer(0).answer()) == "answer"
    with pytest.raises(Unreachable):
        await uninterrupted(Peer(1).answer())
