"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forethought.queue.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis of our own (tests flush it, so a configured one is never used)."""
    with EmbeddedRedis() as redis:
        yield redis.url
