"""A Redis whose administrator is the test: it can be made to refuse, as full or failing ones do.

The embedded one does not let its users change its configuration.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import redis
import redis.asyncio

from forethought.orphan import death_with_parent
from forethought.queue.embedded import find_server

Admin = redis.asyncio.Redis


@contextmanager
def administered_redis(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a Redis that works in ``folder``, whose path has to be short."""
    server, socket_path = find_server(), folder / "admin.sock"
    assert server is not None
    command = [
        server.path,
        "--port",
        "0",
        "--unixsocket",
        socket_path,
        "--dir",
        folder,
        "--save",
        "",
    ]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.DEVNULL, preexec_fn=death_with_parent()
    )
    try:
        while process.poll() is None and not _answers(socket_path):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        yield f"unix://{socket_path}"
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def admin_of(url: str) -> AsyncIterator[Admin]:
    async with redis.asyncio.from_url(url) as admin:
        yield admin


def _answers(socket_path: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket_path), retry=None) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@asynccontextmanager
async def full(admin: Admin) -> AsyncIterator[None]:
    """OOM."""
    await admin.config_set("maxmemory", 1)
    yield
    await admin.config_set("maxmemory", 0)


@asynccontextmanager
async def alone(admin: Admin) -> AsyncIterator[None]:
    """NOREPLICAS."""
    await admin.config_set("min-replicas-to-write", 1)
    yield
    await admin.config_set("min-replicas-to-write", 0)


@asynccontextmanager
async def failed_over(admin: Admin) -> AsyncIterator[None]:
    """READONLY."""
    await admin.replicaof("127.0.0.1", 1)
    yield
    await admin.replicaof("no", "one")


@asynccontextmanager
async def cut_off(admin: Admin) -> AsyncIterator[None]:
    """MASTERDOWN."""
    await admin.config_set("replica-serve-stale-data", "no")
    async with failed_over(admin):
        yield


@asynccontextmanager
async def unable_to_save(admin: Admin) -> AsyncIterator[None]:
    """MISCONF: a folder is where its snapshot should go."""
    folder = Path((await admin.config_get("dir"))["dir"]) / "dump.rdb"
    folder.mkdir()
    await admin.config_set("save", "3600 1")
    await admin.bgsave()
    while (await admin.info("persistence"))["rdb_last_bgsave_status"] == "ok":
        await asyncio.sleep(0.01)
    yield
    folder.rmdir()
    await admin.config_set("save", "")


@asynccontextmanager
async def busy(admin: Admin) -> AsyncIterator[None]:
    """BUSY: it runs a script without end."""
    await admin.config_set("lua-time-limit", 1)
    path = admin.connection_pool.connection_kwargs["path"]

    def run() -> None:
        with redis.Redis(unix_socket_path=path) as other, suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    script = threading.Thread(target=run)
    script.start()
    while not await _is_refused(admin):
        await asyncio.sleep(0.01)
    yield
    await admin.script_kill()
    await asyncio.to_thread(script.join)


async def _is_refused(admin: Admin) -> bool:
    try:
        return not await admin.ping()
    except redis.ResponseError:
        return True


REFUSALS = {
    "OOM": full,
    "NOREPLICAS": alone,
    "READONLY": failed_over,
    "MASTERDOWN": cut_off,
    "MISCONF": unable_to_save,
    "BUSY": busy,
}
"""How to make a Redis refuse, by the code of (most of) its refusals."""
