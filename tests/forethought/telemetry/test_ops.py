"""The ops port over real HTTP, and the log configuration."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter

from forethought.errors import InvalidInput
from forethought.telemetry.log import configure_logging
from forethought.telemetry.ops import OpsServer


@asynccontextmanager
async def ops_server(ready=lambda: True, describe=dict, registry=None) -> AsyncIterator[OpsServer]:
    server = OpsServer("127.0.0.1", 0, ready, describe, registry or CollectorRegistry())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def get(server: OpsServer, path: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{server.port}{path}")


async def test_healthz_answers_while_nothing_is_ready():
    async with ops_server(ready=lambda: False) as server:
        reply = await get(server, "/healthz")
    assert (reply.status_code, reply.text) == (200, "ok\n")


async def test_readyz_is_503_with_a_reason_until_ready():
    held: dict[str, int] = {}
    async with ops_server(lambda: bool(held), lambda: {"serving": dict(held)}) as server:
        before = await get(server, "/readyz")
        held["policy"] = 3
        after = await get(server, "/readyz")
    assert before.status_code == 503
    assert before.json() == {
        "ready": False,
        "reason": "no verified weights are being served yet",
        "serving": {},
    }
    assert (after.status_code, after.json()) == (200, {"ready": True, "serving": {"policy": 3}})


async def test_readyz_prefers_the_reason_from_describe():
    async with ops_server(lambda: False, lambda: {"reason": "draining"}) as server:
        assert (await get(server, "/readyz")).json()["reason"] == "draining"


async def test_metrics_shows_the_given_registry_only():
    registry = CollectorRegistry()
    Counter("pushes", "Pushes taken.", registry=registry).inc(2)
    async with ops_server(registry=registry) as server:
        reply = await get(server, "/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    assert "pushes_total 2.0" in reply.text
    assert "python_info" not in reply.text


async def test_nothing_else_is_served():
    async with ops_server() as server:
        assert [(await get(server, path)).status_code for path in ("/", "/docs")] == [404, 404]


async def test_signals_stay_with_the_process():
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        async with ops_server() as server:
            assert {number: signal.getsignal(number) for number in before} == before
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(terminated.wait(), 5)
            assert (await get(server, "/healthz")).status_code == 200
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_port_in_use_is_rejected_with_a_clear_message():
    async with ops_server() as server:
        second = OpsServer("127.0.0.1", server.port, lambda: True, dict, CollectorRegistry())
        with pytest.raises(InvalidInput, match=f"port {server.port}.*set the port to 0"):
            await second.start()


async def test_stop_closes_the_port_and_may_be_repeated():
    async with ops_server() as server:
        assert (await get(server, "/healthz")).status_code == 200
        await server.stop()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.fixture
def _logging_restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # pytest's own must survive configure_logging(force=True)
    yield
    root.handlers, root.level = handlers, level


@pytest.mark.usefixtures("_logging_restored")
def test_a_record_is_one_line_with_process_level_and_logger(capfd):
    configure_logging("rollout-100%", "info")
    log = logging.getLogger("forethought.test")
    log.debug("not shown")
    log.warning("first\nsecond %s", "third")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(" rollout-100% WARNING forethought.test: first\\nsecond third")


@pytest.mark.usefixtures("_logging_restored")
def test_configuring_again_replaces_and_an_unknown_level_is_refused(capfd):
    configure_logging("one")
    configure_logging("two", "DEBUG")
    logging.getLogger("forethought.test").debug("once")
    assert capfd.readouterr().err.count("once") == 1
    with pytest.raises(InvalidInput, match="'loud'; expected one of debug"):
        configure_logging("three", "loud")
