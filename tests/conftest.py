"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

# Read when gRPC is imported; its fork handlers would write into the log of a child started meanwhile.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# Read when huggingface_hub is imported: no test asks the real hub.
os.environ["HF_HUB_OFFLINE"] = "1"

from forethought.queue.embedded import EmbeddedRedis

if TYPE_CHECKING:
    from tests.vllm_engines import VllmPool


def turn(item: pytest.Item) -> int:
    """Tests that start processes come first, vLLM tests last because their engines take memory."""
    marks = {mark.name for mark in item.iter_markers()}
    if "vllm" in marks:
        return 2 if "e2e" in marks else 3
    return 0 if "e2e" in marks else 1


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """In parallel (``-n 2 --dist loadgroup``), process tests share one worker, then vLLM tests.

    Together they take half of the time; a vLLM group that starts last would leave a worker idle.
    Every other file is a group of its own. Groups must be assigned before xdist reads them.
    """
    group = str(item.path) if turn(item) == 1 else "processes"
    item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by :func:`turn`, overriding pytest's grouping by fixture scope."""
    items.sort(key=turn)  # a stable sort


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A folder for a socket, whose path may have 103 bytes: pytest's own take most of them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis started for the tests (they flush it, so a configured one is never used)."""
    with EmbeddedRedis() as redis:
        yield redis.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_pool() -> AsyncIterator[VllmPool]:
    """The started vLLM engines of the session."""
    from tests.vllm_engines import VllmPool

    pool = VllmPool()
    yield pool
    await pool.close()
