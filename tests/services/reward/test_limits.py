"""The limits of a request, in the unit of each cost, over HTTP and gRPC: refused before it is paid."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from forethought.clients import AsyncRewardClient, ItemScores, MatchItem, Retries, ScoreItem
from forethought.compute.served_model import ServedModel
from forethought.errors import InvalidInput, Overloaded, TooLarge
from services.reward.conversions import LARGE, Conversions
from services.reward.http.structure import check_structure
from services.reward.limits import Limits
from services.reward.memory import BodyMemory
from tests.endpoints import RewardEndpoints, reward_endpoints
from tests.fake_replica import until
from tests.tiny import build_model_directory, serve

LIMITS = Limits(
    max_batch_tokens=60,
    max_request_items=4,
    max_request_thoughts=10,
    max_request_tokens=200,
    max_text_characters=50,
    max_reply_bytes=32 * 30,
)
PAIR = ("a", "b")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_directory(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture
def policy(directory: Path) -> ServedModel:
    return serve(directory, "policy")


@pytest.fixture
async def endpoints(policy: ServedModel) -> AsyncIterator[RewardEndpoints]:
    async with reward_endpoints(policy, policy, LIMITS) as endpoints:
        yield endpoints


@pytest.fixture(params=["http", "grpc"])
async def client(
    endpoints: RewardEndpoints, request: pytest.FixtureRequest
) -> AsyncIterator[AsyncRewardClient]:
    async with AsyncRewardClient(endpoints.urls[request.param]) as client:
        yield client


def requests(client: AsyncRewardClient) -> dict[str, Any]:
    """Requests over a limit, by what their refusals say."""
    item = ScoreItem("abc", "d", PAIR)
    return {
        "got 5 items; expected at most 4": client.score([item] * 5),
        "got 5 items; expected at most 4 in one": client.match(
            [MatchItem("a", "a")] * 5, kind="exact"
        ),
        "got 12 thoughts over all items; expected at most 10": client.score(
            [ScoreItem("abc", "d", PAIR * 3)] * 2
        ),
        "got 11 continuations; expected at most 10": client.logprobs("abc", ["d"] * 11),
        "got a text of 51 characters; expected at most 50": client.entropy("a" * 51),
        "got a text of 52 characters; expected": client.logprobs("a" * 52, ["d"]),
        "got a row of 61 tokens; expected at most 60": client.entropy([5] * 61),
        "got a row of 62 tokens; expected at most 60": client.logprobs([5] * 60, [[6, 7]]),
        "the request has 204 tokens to compute": client.logprobs([5] * 50, ["d"] * 10),
        "numbers for 31 tokens, about 992 bytes; expected at most 960": client.entropy([5] * 31),
        "numbers for 40 tokens": client.logprobs([5], ["d" * 8] * 5),
    }


async def test_a_request_over_a_limit_is_refused_before_its_cost(
    client: AsyncRewardClient, endpoints: RewardEndpoints
) -> None:
    for message, request in requests(client).items():
        with pytest.raises(TooLarge) as refused:
            await request
        assert message in str(refused.value)
    assert endpoints.service.batcher.num_batches == 0
    assert endpoints.service.memory.num_bytes == 0


async def test_an_item_over_a_limit_fails_alone(client: AsyncRewardClient) -> None:
    good, text, row = await client.score(
        [
            ScoreItem("abc", "d", PAIR),
            ScoreItem("a" * 51, "d", PAIR),
            ScoreItem([5] * 60, "d", PAIR),
        ]
    )
    assert isinstance(good, ItemScores)
    assert isinstance(text, InvalidInput)
    assert "text of 51 characters" in str(text)
    assert isinstance(row, InvalidInput)
    assert "got a row of 64 tokens" in str(row)


def test_a_large_body_is_counted_before_it_is_decoded() -> None:
    limits = Limits(100, max_request_items=1000, max_request_thoughts=2000)
    fits = b'{"items":[%b]}' % b",".join([b'{"id":"]},{[,\\"","thoughts":["a",[1,2,3]]}'] * 1000)
    check_structure(fits, 1000, limits)
    check_structure(b'{"token_ids":[%b]}' % b",".join([b"1"] * 100_000), 1000, limits)
    for body in (
        b'{"items":[%b]}' % b",".join([b"{}"] * 1001),
        b'{"items":[{"id":[%b]}]}' % b",".join([b"[]"] * 100_000),
        b'{"items":[{%b}]}' % b",".join(b'"%d":1' % key for key in range(100_000)),
        b"[" * 100_000,
        b'{"thoughts":[%b]}' % b",".join([b'""'] * 100_000),
    ):
        with pytest.raises(TooLarge, match="split it into several requests"):
            check_structure(body, 1000, limits)


def test_texts_without_end_are_read_once() -> None:
    check_structure(b'{"id":"' + b'\\"' * 1_000_000, 10, Limits(100))


@pytest.mark.parametrize("target", ["/v1/match", "/v1/match?x=1"], ids=["fast path", "asgi"])
async def test_the_memory_of_bodies_is_limited(policy: ServedModel, target: str) -> None:
    limits = Limits(max_batch_tokens=60, max_waiting_bytes=200_000)
    async with (
        reward_endpoints(policy, policy, limits) as endpoints,
        httpx2.AsyncClient(base_url=endpoints.urls["http"]) as http,
    ):

        async def status(num_bytes: int) -> int:
            items = [{"prediction": "a", "truth": "b" * num_bytes}]
            return (await http.post(target, json={"kind": "exact", "items": items})).status_code

        assert [await status(num_bytes) for num_bytes in (99_000, 100_000, 99_000)] == [
            200,
            429,
            200,
        ]
        url, memory = httpx2.URL(endpoints.urls["http"]), endpoints.service.memory
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n".encode())
        writer.write(b" " * 80_000)
        await until(lambda: memory.num_bytes == 80_000)
        assert [await status(num_bytes) for num_bytes in (40_000, 20_000)] == [429, 200]
        writer.close()
        await until(lambda: memory.num_bytes == 0)
        assert await status(99_000) == 200


async def test_the_memory_of_messages_is_limited(policy: ServedModel) -> None:
    limits = Limits(max_batch_tokens=60, max_waiting_bytes=200_000)
    once = Retries(max_attempts=1)
    async with (
        reward_endpoints(policy, policy, limits) as endpoints,
        AsyncRewardClient(endpoints.urls["grpc"], retries=once) as client,
    ):
        with pytest.raises(Overloaded, match="expected at most 100000"):
            await client.match([MatchItem("a", "a" * 100_001)], kind="exact")
        assert await client.match([MatchItem("a", "a" * 90_000)], kind="exact") == (False,)


def test_small_requests_have_half_of_the_memory_to_themselves() -> None:
    memory = BodyMemory(4 * LARGE)
    memory.take(2 * LARGE)
    with pytest.raises(Overloaded, match=f"{2 * LARGE} bytes of requests.*for a large request"):
        memory.take(1, num_held=LARGE)
    memory.take(LARGE)
    memory.take(LARGE)
    with pytest.raises(Overloaded, match=f"expected at most {4 * LARGE}, reward.max_waiting_bytes"):
        memory.take(1)
    memory.release(4 * LARGE)
    memory.take(2 * LARGE)


async def test_a_large_conversion_ends_before_the_next_item_once_its_caller_left() -> None:
    conversions, started, converted = Conversions(), asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def convert(item: int) -> None:
        converted.append(item)
        if item == 0:
            loop.call_soon_threadsafe(started.set)
        while not is_cancelled:
            pass

    is_cancelled: list[int] = []
    converting = asyncio.create_task(conversions.map(LARGE, convert, range(100)))
    await started.wait()
    converting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await converting
    is_cancelled.append(1)
    await conversions.run(LARGE, int)  # the other thread is free
    await conversions.map(LARGE, str, range(2))
    conversions.close()
    assert converted == [0]


async def test_openapi_shows_the_limits(endpoints: RewardEndpoints) -> None:
    async with httpx2.AsyncClient(base_url=endpoints.urls["http"]) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]

    def properties(path: str) -> dict[str, Any]:
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]
        found: dict[str, Any] = body["schema"]["properties"]
        return found

    items = properties("/v1/score")["items"]
    thoughts = items["items"]["properties"]["thoughts"]
    assert (items["maxItems"], thoughts["maxItems"]) == (4, 10)
    assert properties("/v1/match")["items"]["maxItems"] == 4
    assert properties("/v1/logprobs")["continuations"]["maxItems"] == 10
    for texts in (
        items["items"]["properties"]["context"]["anyOf"],
        thoughts["items"]["anyOf"],
        properties("/v1/entropy")["text"]["anyOf"],
    ):
        assert [kind["maxLength"] for kind in texts if kind["type"] == "string"] == [50]
