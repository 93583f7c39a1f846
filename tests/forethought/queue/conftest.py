"""The broker under test, once in memory and once on a real Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from forethought.queue.redis_broker import RedisBroker
from tests.brokers import Bench, memory_bench
from tests.redis_loss import lose_everything


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "memory":
        yield memory_bench()
        return
    url = request.getfixturevalue("redis_url")
    brokers = [RedisBroker(url, f"test-{uuid.uuid4().hex}") for _ in range(2)]

    yield Bench(brokers[0], brokers[1], asyncio.sleep, lambda: lose_everything(url))
    for broker in brokers:
        await broker.close()
