"""The queues between the services, behind one narrow interface.

Design: three streams with leases, the run epoch, the run manifest and the replica registry form one
``Broker``, because the learner must see them vanish and come back together. There are two
implementations, Redis for every real run and memory for tests and single-process runs, held to the same
contract by one test suite. The price is that the interface offers only what both can do atomically.

Import ``RedisBroker`` and ``EmbeddedRedis`` from their modules, or get a broker from :func:`connect`:
importing this package does not load redis.
"""

from __future__ import annotations

from forethought.errors import InvalidInput
from forethought.queue.interface import (
    JSON,
    MAX_VALUE_BYTES,
    Broker,
    BrokerMemory,
    Consumer,
    DeadLetter,
    Delivery,
    ErrorResult,
    Message,
    Stage,
    StageDepth,
    Watermark,
)

__all__ = [
    "JSON",
    "MAX_VALUE_BYTES",
    "Broker",
    "BrokerMemory",
    "Consumer",
    "DeadLetter",
    "Delivery",
    "ErrorResult",
    "Message",
    "Stage",
    "StageDepth",
    "Watermark",
    "connect",
    "read_memory",
]

_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def connect(url: str, run: str) -> Broker:
    """The broker of a run; does no I/O before its first use.

    ``redis://``, ``rediss://`` and ``unix://`` connect to a Redis. ``memory://`` makes a new in-memory
    broker at every call: share the object within the process.

    Raises:
        InvalidInput: another scheme, or a run name that cannot be part of a key.
    """
    if url == "memory://":
        from forethought.queue.memory_broker import MemoryBroker

        return MemoryBroker()
    if url.startswith(_REDIS_SCHEMES):
        from forethought.queue.redis_broker import RedisBroker

        return RedisBroker(url, run)
    scheme = url.partition("://")[0] if "://" in url else "no scheme"
    raise InvalidInput(
        f"queue URL has {scheme!r}; expected redis://, rediss://, unix:// or memory://; "
        "set FORETHOUGHT_REDIS_URL to something like redis://127.0.0.1:6379/0"
    )


async def read_memory(url: str, run: str) -> BrokerMemory:
    """The memory that the broker at a URL uses and may use, over a connection of its own.

    Raises:
        Unreachable: it does not respond, or to no command (see :meth:`Broker.ping`).
        InvalidInput: as :func:`connect`.
    """
    broker = connect(url, run)
    try:
        await broker.ping()
        return await broker.memory()
    finally:
        await broker.close()
