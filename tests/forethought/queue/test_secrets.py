"""Neither a password nor a task's body is shown when Redis, or its URL, fails."""

from __future__ import annotations

import pytest
import redis

from forethought.errors import InvalidInput, Unreachable
from forethought.queue import Message, Stage
from forethought.queue.embedded import EmbeddedRedis
from forethought.queue.keys import Keys
from forethought.queue.redis_broker import RedisBroker
from forethought.queue.redis_link import hide_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("unix:///tmp/a/redis.sock?db=1", "unix:///tmp/a/redis.sock?db=1"),
        ("redis://:s3cret@h/0", "redis://:***@h/0"),
        ("redis://me:s3cret@h:1/0?db=2", "redis://me:***@h:1/0?db=2"),
        ("redis://h/0?password=s3cret", "redis://h/0?password=***"),
        ("redis://h/0?Password=s3cret&db=1", "redis://h/0?Password=***&db=1"),
        ("redis://h/0?password=s3@cret", "redis://h/0?password=***"),
        ("redis://h/0?s3cret", "redis://h/0?***"),
        ("unix://me:s3cret@/tmp/r.sock", "unix://me:***@/tmp/r.sock"),
        ("redis://:s3@s3cret@h/0", "redis://:***@h/0"),
        ("redis://:a/s3cret@h/0", "redis://***"),
        ("redis://:s3cret/a@h/0", "redis://***"),
        ("redis://:s3@s3cret/a@h:6379/0", "redis://***"),
        ("redis://:1?s3cret@h/0", "redis://***"),
        ("redis://me:s3cret?a=b@h/0", "redis://***"),
        ("redis://:s3cret#a@h/0", "redis://***"),
        ("rediss://me:1#s3cret@h/0", "rediss://***"),
        ("s3cret", "(not a URL)"),
    ],
)
def test_no_secret_of_a_url_is_shown(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize(
    "url", ["redis://:a/s3cret@h/0", "redis://:s3cret/a@h/0", "redis://me:s3cret?a@h/0"]
)
def test_a_password_that_is_not_escaped_is_refused_without_it(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"redis://\*\*\* cannot be parsed.*%2F") as refused:
        RedisBroker(url, "run")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


async def test_an_unreachable_redis_shows_no_password() -> None:
    broker = RedisBroker("redis://127.0.0.1:1/0?password=s3cret", "run")
    with pytest.raises(Unreachable, match=r"password=\*\*\*") as failed:
        await broker.ping()
    await broker.close()
    assert "s3cret" not in str(failed.value)
    assert broker.place == "run run in Redis at redis://127.0.0.1:1/0?password=***"


async def test_a_failed_command_shows_no_body() -> None:
    with EmbeddedRedis() as embedded:
        broker = RedisBroker(embedded.url, "run")
        with redis.Redis.from_url(embedded.url) as client:
            client.set(Keys("run").stream(Stage.TASKS), "not a stream")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE") as failed:
            await broker.put(Stage.TASKS, [Message(1, 1, b"a text of the corpus")])
        await broker.close()
    assert "corpus" not in str(failed.value)
