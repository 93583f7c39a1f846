"""The container probe, against a real ops port and against none."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from forethought.telemetry import probe
from forethought.telemetry.ops import OpsServer


class Readiness:
    value = False


@pytest.fixture
async def ops() -> AsyncIterator[OpsServer]:
    server = OpsServer(
        "127.0.0.1", 0, lambda: Readiness.value, lambda: {"version": 7}, CollectorRegistry()
    )
    await server.start()
    yield server
    await server.stop()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    # A dead proxy: the probe must connect directly, whatever the environment says.
    environment = {"http_proxy": "http://127.0.0.1:1", "PATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "forethought.telemetry.probe", *words],
        capture_output=True,
        text=True,
        env=environment,
    )


async def in_thread(*words: str) -> subprocess.CompletedProcess[str]:
    import asyncio

    return await asyncio.to_thread(run, *words)


async def test_ready_is_0_and_not_ready_is_1_with_the_reason(ops: OpsServer) -> None:
    Readiness.value = False
    done = await in_thread("--port", str(ops.port))
    assert done.returncode == 1
    assert "got status 503, expected 200" in done.stderr
    assert '"version":7' in done.stderr
    assert (await in_thread("--path", "/healthz", "--port", str(ops.port))).returncode == 0
    Readiness.value = True
    done = await in_thread("--port", str(ops.port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_closed_and_a_silent_port_are_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "no answer" in (probe.fault_of_url(f"http://127.0.0.1:{port}/readyz", 0.2) or "")
    done = run("--port", str(port))
    assert done.returncode == 1
    assert "no answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_the_standard_library_is_loaded() -> None:
    code = (
        "import sys; from forethought.telemetry import probe; "
        "print({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout)) - {"__main__", "forethought"}
    assert not {name for name in loaded if not name.startswith(("_", "sitecustomize"))}, loaded
