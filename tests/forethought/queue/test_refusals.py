"""A Redis that answers and refuses: for a moment, for want of memory, or for want of a credential."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import exceptions

from forethought.errors import Forbidden, Unauthenticated, Unreachable
from forethought.queue import BrokerMemory, Message, Stage
from forethought.queue.interface import ConsumerOptions, Watermark
from forethought.queue.redis_broker import RedisBroker
from forethought.queue.redis_link import RedisLink
from forethought.types import Replica
from tests.redis_server import REFUSALS, Admin, admin_of, administered_redis, full

_WRAPPED = "Error running script (call to f_7bde4bd4): @user_script:1: @user_script: 1: -{}"
"""How a script of Redis 6.2.14 passes on a refusal."""


@pytest.fixture
def url(socket_dir: Path) -> Iterator[str]:
    with administered_redis(socket_dir) as started:
        yield started


@pytest.fixture
async def admin(url: str) -> AsyncIterator[Admin]:
    async with admin_of(url) as client:
        yield client


@pytest.fixture
async def broker(url: str) -> AsyncIterator[RedisBroker]:
    connected = RedisBroker(url, "run")
    yield connected
    await connected.close()


def options(
    stage: Stage = Stage.TASKS, result_stage: Stage | None = Stage.ROLLOUTS
) -> ConsumerOptions:
    return ConsumerOptions(stage, result_stage, "a", 60.0, 3, lambda message, reason: message)


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_an_outage_that_changes_nothing(
    broker: RedisBroker, admin: Admin, code: str
) -> None:
    await broker.put(Stage.TASKS, [Message(1, 1, b"task")])
    consumer = broker.consumer(options())
    (delivery,) = await consumer.receive(1, 0)
    attempts = [lambda: broker.put(Stage.TASKS, [Message(i, 1, b"task") for i in range(2, 200)])]
    if code != "OOM":
        attempts += [lambda: consumer.begin(delivery), lambda: consumer.receive(1, 0)]
        attempts += [lambda: consumer.finish(delivery, Message(1, 1, b"thoughts"))]
        attempts += [lambda: broker.new_epoch(1), lambda: broker.set_run(1, {})]
        attempts += [lambda: broker.withdraw("a"), lambda: consumer.release(delivery)]
    async with REFUSALS[code](admin):
        for attempt in attempts:
            with pytest.raises(Unreachable, match="refuses for now"):
                await attempt()
    assert await consumer.begin(delivery) == 1
    assert await consumer.finish(delivery, Message(1, 1, b"thoughts"))
    depths = await broker.depths()
    assert [depths[stage].waiting for stage in Stage] == [0, 1, 0]
    assert await broker.new_epoch(1) == 1


async def test_a_full_redis_holds_up_only_new_tasks(broker: RedisBroker, admin: Admin) -> None:
    """What frees memory, and what keeps replicas registered and a learner in charge, goes on."""
    await broker.put(Stage.TASKS, [Message(i, 1, b"task") for i in range(3)])
    consumer = broker.consumer(options())
    finished, buried, released = await consumer.receive(3, 0)
    async with full(admin):
        with pytest.raises(Unreachable, match="OOM"):
            await broker.put(Stage.TASKS, [Message(9, 1, b"task")])
        assert await broker.new_epoch(1) == 1
        assert await broker.restore_epoch(4) == 4
        assert await broker.instance_id()
        await broker.raise_watermark(Watermark(4, 7))
        await broker.set_run(4, {})
        await broker.announce(Replica("a", "rollout", "h:1", ("policy",)), ttl_s=30)
        assert await consumer.begin(finished) == 1
        assert await consumer.renew([finished]) == [finished]
        assert await consumer.finish(finished, Message(0, 1, b"thoughts"))
        assert await consumer.bury(buried, "given up")
        await consumer.release(released)
        await broker.clear_work()
    assert await broker.run() == {"epoch": 4}
    assert [replica.replica_id for replica in await broker.replicas()] == ["a"]


@pytest.mark.parametrize(
    "reply",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist.",
        "NOREPLICAS Not enough good replicas to write.",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN Hash slot not served",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "LOADING Redis is loading the dataset in memory",
    ],
)
def test_a_refusal_is_recognised_in_the_error_of_a_script(reply: str) -> None:
    link = RedisLink("redis://h")
    for text in (reply, f"ERR {_WRAPPED.format(reply)}"):
        with (
            pytest.raises(Unreachable, match=f"refuses for now: {reply.split()[0]}"),
            link.reaching(),
        ):
            raise exceptions.ResponseError(text)
    with pytest.raises(Unreachable, match="max number of clients"), link.reaching():
        raise exceptions.ConnectionError("max number of clients reached")


@pytest.mark.parametrize(
    "reply",
    ["BUSYGROUP Consumer Group name already exists", "WRONGTYPE it is no stream", "ERR what"],
)
def test_other_errors_stay_what_they_are(reply: str) -> None:
    with pytest.raises(exceptions.ResponseError, match=reply), RedisLink("redis://h").reaching():
        raise exceptions.ResponseError(reply)


async def test_what_a_credential_does_not_grant_is_no_outage(url: str, admin: Admin) -> None:
    await admin.acl_setuser(
        "u", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all", "-xadd", "-get"]
    )
    limited = RedisBroker(url.replace("unix://", "unix://u:p@"), "run")
    with pytest.raises(Forbidden, match=r"does not let its user do this.*'get'"):
        await limited.current_epoch()
    with pytest.raises(Forbidden, match="does not let its user do this"):
        await limited.put(Stage.TASKS, [Message(1, 1, b"task")])  # by a script
    await limited.close()
    for wrong in ("unix://u:s3cret@", "unix://stranger:s3cret@"):
        stranger = RedisBroker(url.replace("unix://", wrong), "run")
        with pytest.raises(Unauthenticated, match="correct the password") as refused:
            await stranger.ping()
        assert "s3cret" not in str(refused.value)
        await stranger.close()


async def test_memory_is_what_redis_says(broker: RedisBroker, admin: Admin) -> None:
    before = await broker.memory()
    assert (before.max_bytes, before.policy) == (0, "noeviction")
    await admin.config_set("maxmemory", 64 << 20)
    await admin.config_set("maxmemory-policy", "allkeys-lru")
    await broker.put(Stage.TASKS, [Message(i, 1, bytes(1 << 20)) for i in range(8)])
    now = await broker.memory()
    assert now == BrokerMemory(now.used_bytes, 64 << 20, "allkeys-lru")
    assert now.used_bytes - before.used_bytes >= 8 << 20
