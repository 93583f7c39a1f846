"""Calls within the network go to the replica itself, whatever proxies the environment names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from forethought.clients import AsyncRewardClient, RewardClient
from forethought.clients.http_transport import _is_internal
from forethought.telemetry.probe import fault_of_url
from tests.endpoints import RewardEndpoints, reward_endpoints
from tests.fake_replica import FakeReplica, serving
from tests.repository import ROOT
from tests.tiny import build_model_directory, serve

_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


class Proxy:
    """A listener that counts its connections and closes them."""

    def __init__(self) -> None:
        self.num_connections = 0

    def take(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        writer.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy that the environment of this process names, in all ways and for all hosts."""
    proxy = Proxy()
    async with await asyncio.start_server(proxy.take, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in _VARIABLES:
            monkeypatch.setenv(name, url)
            monkeypatch.setenv(name.upper(), url)
        yield proxy


@pytest.fixture
async def endpoints(tmp_path: Path) -> AsyncIterator[RewardEndpoints]:
    directory = build_model_directory(tmp_path, seed=1)
    models = (serve(directory, "policy", version=1), serve(directory, "baseline", version=1))
    async with reward_endpoints(*models) as endpoints:
        yield endpoints


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_clients_ignore_proxies(
    proxy: Proxy, endpoints: RewardEndpoints, scheme: str
) -> None:
    url = endpoints.urls[scheme]
    async with AsyncRewardClient(url, timeout_s=10) as client:
        assert (await client.models()).policy
    with RewardClient(url, timeout_s=10) as blocking:
        assert (await asyncio.to_thread(blocking.models)).policy
    assert proxy.num_connections == 0


async def test_weights_do_not_pass_a_proxy(proxy: Proxy, tmp_path: Path) -> None:
    async with serving(FakeReplica("rollout-a1", tmp_path)) as replica:
        assert await replica.status() == {}
    assert proxy.num_connections == 0


async def test_probes_ignore_proxies(proxy: Proxy, endpoints: RewardEndpoints) -> None:
    fault = await asyncio.to_thread(fault_of_url, endpoints.urls["http"] + "/docs", 10)
    assert (fault, proxy.num_connections) == (None, 0)


@pytest.mark.parametrize(
    ("host", "internal"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("192.168.0.9", True),
        ("localhost", True),
        ("reward", True),
        ("reward.forethought.svc.cluster.local", True),
        ("reward.forethought.svc", True),
        ("8.8.8.8", False),
        ("reward.example.com", False),
    ],
)
def test_only_public_hosts_are_asked_through_a_proxy(host: str, internal: bool) -> None:
    assert _is_internal(host) is internal


def test_one_module_opens_channels() -> None:
    assert list(modules_with("insecure_channel(")) == ["forethought/rpc/channel.py"]


def modules_with(text: str) -> Iterator[str]:
    for folder in ("benchmarks", "examples", "forethought", "services", "trainer"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if text in path.read_text(encoding="utf-8"):
                yield path.relative_to(ROOT).as_posix()
