"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from forethought.queue.embedded import EmbeddedRedis

if TYPE_CHECKING:
    from tests.vllm_engines import VllmPool


def turn(item: pytest.Item) -> int:
    """Tests with processes of their own come first, those with vLLM last, whose engines take memory."""
    marks = {mark.name for mark in item.iter_markers()}
    if "vllm" in marks:
        return 2 if "e2e" in marks else 3
    return 0 if "e2e" in marks else 1


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Side by side (``-n 2 --dist loadgroup``), what starts processes stays in one worker, as does vLLM.

    So does each file of the others. Groups have to be named before xdist looks for them.
    """
    group = ("processes", str(item.path), "vllm", "vllm")[turn(item)]
    item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In their turn, whatever fixtures would rather have."""
    items.sort(key=turn)  # a stable sort


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis of our own (tests flush it, so a configured one is never used)."""
    with EmbeddedRedis() as redis:
        yield redis.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_pool() -> AsyncIterator[VllmPool]:
    """The started vLLM engines of the session."""
    from tests.vllm_engines import VllmPool

    pool = VllmPool()
    yield pool
    await pool.close()
