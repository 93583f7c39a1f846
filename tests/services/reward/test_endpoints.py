"""Log-probs, matches and entropies over HTTP equal plain transformers, sequentially and concurrently."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from forethought import objectives
from forethought.compute.served_model import ServedModel
from services.reward.http.server import RewardApp
from services.reward.limits import Limits
from services.reward.scoring import Scorer
from services.reward.service import RewardService
from tests.e2e.plain_reward import PlainModel
from tests.endpoints import OPEN
from tests.tiny import (
    CLOSE_ID,
    OPEN_ID,
    THINK_CLOSE,
    THINK_OPEN,
    VOCAB_SIZE,
    build_model_directory,
    manifest,
    serve,
)

MAX_BODY_BYTES = 20_000
CLOSE = 1e-5


@dataclass(frozen=True)
class Served:
    policy: ServedModel
    baseline: ServedModel
    plain_policy: PlainModel
    plain_baseline: PlainModel


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    paths: list[Path] = [
        build_model_directory(tmp_path_factory.mktemp("model"), request.param, seed=seed)
        for seed in (1, 2)
    ]
    return Served(
        serve(paths[0], "policy", version=4),
        serve(paths[1], "baseline", version=3),
        PlainModel(paths[0]),
        PlainModel(paths[1]),
    )


def make_service(
    policy: ServedModel, baseline: ServedModel | None = None, **limits: Any
) -> RewardService:
    return RewardService(
        Scorer(policy, baseline, max_batch_tokens=1000),
        {"rlp": objectives.load("rlp")},
        think_open=limits.pop("think_open", THINK_OPEN),
        think_close=THINK_CLOSE,
        limits=Limits(**({"max_batch_tokens": 1000, "max_request_tokens": 5000} | limits)),
    )


def connect(service: RewardService) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(RewardApp(service, MAX_BODY_BYTES, OPEN))
    return httpx2.AsyncClient(transport=transport, base_url="http://reward")


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with connect(make_service(served.policy, served.baseline)) as client:
        yield client


async def ask(client: httpx2.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_logprobs_equal_a_plain_computation(
    client: httpx2.AsyncClient, served: Served
) -> None:
    for model, plain, version in (
        ("policy", served.plain_policy, 4),
        ("baseline", served.plain_baseline, 3),
    ):
        texts = ["7", "eight", THINK_OPEN, "é"]
        answer = await ask(client, "logprobs", model=model, prefix="3 + 4 = ", continuations=texts)
        assert (answer["model"], answer["epoch"], answer["version"]) == (model, 1, version)
        for text, found in zip(texts, answer["continuations"], strict=True):
            expected = plain.logprobs(plain.ids("3 + 4 = "), plain.ids(text))
            assert found["token_ids"] == plain.ids(text)
            assert found["logprobs"] == pytest.approx(expected, abs=CLOSE)
            assert found["logprob"] == pytest.approx(sum(expected), abs=CLOSE)


async def test_ids_are_used_as_is_and_no_token_is_masked(
    client: httpx2.AsyncClient, served: Served
) -> None:
    every_token = [[token_id] for token_id in range(VOCAB_SIZE)]
    prefix_ids = served.plain_policy.ids("x")
    answer = await ask(client, "logprobs", prefix_ids=prefix_ids, continuations=every_token)
    logprobs = [found["logprob"] for found in answer["continuations"]]
    expected = served.plain_policy.logits(prefix_ids)[-1].log_softmax(dim=-1).tolist()
    assert logprobs == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("top_k", [1, 16, 10_000])
async def test_entropies_equal_a_plain_computation(
    client: httpx2.AsyncClient, served: Served, top_k: int, renormalise: bool
) -> None:
    text = "the cat sat"
    answer = await ask(client, "entropy", text=text, top_k=top_k, renormalise=renormalise)
    ids = served.plain_policy.ids(text)
    assert (answer["token_ids"], answer["first_position"], answer["version"]) == (ids, 1, 4)
    expected = served.plain_policy.entropies(ids, top_k, renormalise)
    assert answer["entropies"] == pytest.approx(expected, abs=CLOSE)
    assert len(answer["entropies"]) == len(ids) - 1


async def test_entropy_of_ids_uses_the_top_16_tokens_by_default(
    client: httpx2.AsyncClient, served: Served
) -> None:
    answer = await ask(client, "entropy", token_ids=[5, 6, 7])
    expected = served.plain_policy.entropies([5, 6, 7], 16)
    assert answer["entropies"] == pytest.approx(expected, abs=CLOSE)


async def test_matches(client: httpx2.AsyncClient) -> None:
    truth = {"truth": " the end", "token_bytes": [4, 4]}
    items: list[dict[str, Any]] = [
        {"id": "a", "prediction": " the", **truth},
        {"id": 2, "prediction": " th", **truth},
        {"prediction": "", **truth},
        {"prediction": " th", "truth": " the end"},  # by the served tokenizer: one byte each
        {"prediction": " th", "truth": " the end", "token_bytes": [4]},
    ]
    answers = (await ask(client, "match", kind="byte_prefix", items=items))["items"]
    assert [a.get("match") for a in answers] == [True, False, False, True, None]
    assert [a["id"] for a in answers] == ["a", 2, None, None, None]
    assert "the truth has 8 bytes" in answers[4]["error"]["message"]
    items = [{"prediction": "1,000", "truth": "1000.0"}, {"prediction": "x", "truth": "y"}]
    numbers = (await ask(client, "match", kind="numeric", items=items))["items"]
    assert numbers[0]["match"] is True
    assert numbers[1]["error"]["status"] == 400
    same = (await ask(client, "match", kind="exact", items=items))["items"]
    assert [a["match"] for a in same] == [False, False]


async def test_match_needs_no_model() -> None:
    async with connect(make_service(ServedModel("policy", "cpu"))) as client:
        given = {"prediction": "a", "truth": "ab", "token_bytes": [1, 1]}
        [answer] = (await ask(client, "match", kind="byte_prefix", items=[given]))["items"]
        assert answer["match"] is True
        del given["token_bytes"]
        [answer] = (await ask(client, "match", kind="byte_prefix", items=[given]))["items"]
        assert answer["error"]["status"] == 503


async def test_a_model_without_markers_answers_everything_but_score(served: Served) -> None:
    async with connect(make_service(served.policy, think_open="")) as client:
        item = {"context": "a", "target": "b", "thoughts": ["c", "d"]}
        response = await client.post("/v1/score", json={"objective": "rlp", "items": [item]})
        assert response.status_code == 503
        message = response.json()["error"]["message"]
        assert "think marker '' is 0 tokens" in message
        assert "model.think_open" in message
        await ask(client, "logprobs", prefix="a", continuations=["b"])
        await ask(client, "entropy", text="ab")


BAD: dict[str, tuple[str, Any, int, str]] = {
    "no object": ("logprobs", [1], 400, "the body is an array"),
    "unknown key": ("logprobs", {"prefx": "a"}, 400, "unknown key 'prefx'; expected only model"),
    "unknown model": ("logprobs", {"model": "../x"}, 400, "expected one of policy, baseline"),
    "model number": ("logprobs", {"model": 1}, 400, "model is 1"),
    "no prefix": ("logprobs", {"continuations": ["a"]}, 400, "got neither of prefix and prefix_ids"),
    "two prefixes": (
        "logprobs", {"prefix": "a", "prefix_ids": [1], "continuations": ["a"]}, 400, "got both",
    ),
    "empty prefix": ("logprobs", {"prefix": "", "continuations": ["a"]}, 400, "prefix is empty"),
    "no continuations": ("logprobs", {"prefix": "a"}, 400, "continuations is missing or null"),
    "empty continuation": (
        "logprobs", {"prefix": "a", "continuations": ["b", ""]}, 400, "continuations[1] is empty",
    ),
    "continuation number": (
        "logprobs", {"prefix": "a", "continuations": [7]}, 400, "continuations[0] is 7",
    ),
    "id true": (
        "logprobs", {"prefix_ids": [True], "continuations": ["a"]}, 400, "prefix_ids[0] is true",
    ),
    "id of nothing": (
        "logprobs", {"prefix": "a", "continuations": [[VOCAB_SIZE]]}, 400, "expected 0 to 258",
    ),
    "surrogate": (
        "logprobs", {"prefix": "a\ud83d", "continuations": ["a"]}, 400, "half a surrogate pair",
    ),
    "surrogate continuation": (
        "logprobs", {"prefix": "a", "continuations": ["\udc00"]}, 400, "half a surrogate pair",
    ),
    "too long": (
        "logprobs", {"prefix": "a" * 99, "continuations": ["a"]}, 400, "the model takes 96",
    ),
    "too many tokens": (
        "logprobs", {"prefix": "a" * 90, "continuations": ["a"] * 100}, 413, "at most 5000",
    ),
    "too many bytes": ("entropy", {"text": "a" * MAX_BODY_BYTES}, 413, "more than 20000 bytes"),
    "kind": ("match", {"kind": "fuzzy", "items": [{}]}, 400, "expected one of byte_prefix"),
    "kind list": ("match", {"kind": ["exact"], "items": [{}]}, 400, "kind is an array"),
    "no items": ("match", {"kind": "exact"}, 400, "items is missing or null"),
    "entropy of nothing": ("entropy", {"text": ""}, 400, "text is empty"),
    "entropy of one token": ("entropy", {"text": "a"}, 400, "expected at least 2"),
    "entropy of a number": ("entropy", {"text": 5}, 400, "ids go into token_ids"),
    "entropy too long": ("entropy", {"text": "a" * 98}, 400, "the model takes 96"),
    "entropy id": ("entropy", {"token_ids": [1, 10**30]}, 400, "expected 0 to 258"),
    "top_k 0": ("entropy", {"text": "ab", "top_k": 0}, 400, "expected an integer from 1"),
    "top_k true": ("entropy", {"text": "ab", "top_k": True}, 400, "top_k is true"),
    "top_k nan": ("entropy", {"text": "ab", "top_k": float("nan")}, 400, "the body holds NaN"),
    "renormalise": ("entropy", {"text": "ab", "renormalise": 1}, 400, "expected true or false"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD.values(), ids=BAD.keys())
async def test_invalid_input_is_refused_with_a_message(
    client: httpx2.AsyncClient, path: str, body: Any, status: int, message: str
) -> None:
    response = await client.post(f"/v1/{path}", content=json.dumps(body))
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["status"] == status
    assert message in error["message"]
    assert len(error["message"]) < 400


BAD_MATCHES: dict[str, tuple[Any, str]] = {
    "null": (None, "expected an object"),
    "unknown key": ({"prediction": "a", "truth": "a", "x": 1}, "unknown key 'x'"),
    "prediction number": ({"prediction": 1, "truth": "a"}, "prediction is 1; expected text"),
    "surrogate": ({"prediction": "\ud800", "truth": "a"}, "half a surrogate pair"),
    "bytes text": ({"prediction": "a", "truth": "a", "token_bytes": "1"}, "list of byte lengths"),
    "bytes float": ({"prediction": "a", "truth": "a", "token_bytes": [1.0]}, "token_bytes[0]"),
    "bytes negative": ({"prediction": "a", "truth": "a", "token_bytes": [2, -1]}, "is -1"),
    "bytes huge": (
        {"prediction": "a", "truth": "a", "token_bytes": [9 * 10**4299] * 2},
        "the truth has 1 bytes",
    ),
    "id": ({"id": [], "prediction": "a", "truth": "a"}, "id is an empty array"),
}


@pytest.mark.parametrize(("item", "message"), BAD_MATCHES.values(), ids=BAD_MATCHES.keys())
async def test_a_bad_match_fails_alone(client: httpx2.AsyncClient, item: Any, message: str) -> None:
    good = {"prediction": "a", "truth": "a"}
    body = json.dumps({"kind": "byte_prefix", "items": [good, item]})
    response = await client.post("/v1/match", content=body)
    fine, bad = response.json()["items"]
    assert fine["match"] is True
    assert bad["error"]["status"] == 400
    assert message in bad["error"]["message"]


async def test_token_bytes_belong_to_one_kind_only(client: httpx2.AsyncClient) -> None:
    item = {"prediction": "a", "truth": "a", "token_bytes": [1]}
    [answer] = (await ask(client, "match", kind="exact", items=[item]))["items"]
    assert "takes no token_bytes" in answer["error"]["message"]


async def test_sixty_four_concurrent_callers_get_the_same_numbers_as_one(served: Served) -> None:
    service = make_service(served.policy, served.baseline, max_batch_tokens=2000)
    plain, base = served.plain_policy, served.plain_baseline
    async with connect(service) as client:

        async def caller(number: int) -> None:
            context, target = f"{'x' * (number % 23)}{number} + 1 = ", f"{number + 1}"
            item = {"context": context, "target": target, "thoughts": ["a" * (number % 9), "so"]}
            [answer] = (await ask(client, "score", objective="rlp", items=[item]))["items"]
            expected = plain.score(item, (OPEN_ID, CLOSE_ID))
            assert answer["policy_logprobs"] == pytest.approx(expected, abs=CLOSE)
            no_think = sum(base.logprobs(plain.ids(context), plain.ids(target), OPEN_ID))
            assert answer["baseline_logprob"] == pytest.approx(no_think, abs=CLOSE)
            found = await ask(client, "logprobs", prefix=context, continuations=[target])
            sums = [one["logprob"] for one in found["continuations"]]
            total = sum(plain.logprobs(plain.ids(context), plain.ids(target)))
            assert sums == pytest.approx([total], abs=CLOSE)
            nats = (await ask(client, "entropy", text=context))["entropies"]
            assert nats == pytest.approx(plain.entropies(plain.ids(context), 16), abs=CLOSE)

        await asyncio.gather(*(caller(number) for number in range(64)))
    assert service.batcher.num_batches < 3 * 64 / 2  # they were batched
    assert service.batcher.num_waiting_tokens == 0


async def test_overload_is_429_with_a_retry_delay(served: Served) -> None:
    service = make_service(served.policy, max_waiting_tokens=300)
    async with connect(service) as client:
        body = {"prefix": "a" * 80, "continuations": ["b"]}
        answers = await asyncio.gather(*(client.post("/v1/logprobs", json=body) for _ in range(20)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        refused = answers[statuses.index(429)]
        assert int(refused.headers["retry-after"]) >= 1
        assert "retry in" in refused.json()["error"]["message"]
        assert (await client.post("/v1/logprobs", json=body)).status_code == 200


@pytest.mark.parametrize(("num_flips", "status"), [(1, 200), (99, 503)])
async def test_all_pieces_of_a_request_see_one_version(
    tmp_path: Path, num_flips: int, status: int
) -> None:
    directory = build_model_directory(tmp_path, seed=1)
    policy = serve(directory, "policy", version=4)

    class Flipping(Scorer):
        num_batches = 0

        async def run(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            result = await super().run(function, *args, **kwargs)
            self.num_batches += 1
            if self.num_batches <= num_flips:  # new weights arrive between two pieces
                policy.load(directory, manifest("policy", 1, 4 + self.num_batches))
            return result

    service = make_service(policy, max_batch_tokens=60)
    service._scorer = Flipping(policy, None, max_batch_tokens=60)
    async with connect(service) as client:
        body = {"prefix": "a" * 40, "continuations": ["b", "c", "d"]}
        answer = await client.post("/v1/logprobs", json=body)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["version"] == 5
    else:
        assert "weights changed 3 times" in answer.json()["error"]["message"]


async def test_a_client_that_disconnects_cancels_its_work(served: Served) -> None:
    service = make_service(served.policy)
    app, sent = RewardApp(service, MAX_BODY_BYTES, OPEN), []
    disconnect = asyncio.Event()
    body = json.dumps({"prefix": "a", "continuations": ["b"]}).encode()

    async def receive() -> dict[str, Any]:
        if not receive_calls:
            receive_calls.append(1)
            return {"type": "http.request", "body": body, "more_body": False}
        await disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    receive_calls: list[int] = []
    with served.policy.hold():  # the compute thread cannot start
        scope = {"type": "http", "method": "POST", "path": "/v1/logprobs", "headers": []}
        call = asyncio.create_task(app(scope, receive, send))
        while not service.batcher.num_waiting_tokens:
            await asyncio.sleep(0)
        disconnect.set()
        await call
        assert service.batcher.num_waiting_tokens == 0
    assert sent == []


async def test_openapi_shows_every_endpoint_with_an_example_that_works(
    client: httpx2.AsyncClient,
) -> None:
    schema = (await client.get("/openapi.json")).json()
    for path in ("/v1/score", "/v1/logprobs", "/v1/match", "/v1/entropy"):
        operation = schema["paths"][path]["post"]
        assert {"200", "400", "413", "429", "503"} <= operation["responses"].keys()
        assert "422" not in operation["responses"]
        content = operation["requestBody"]["content"]["application/json"]
        assert set(content["example"]) <= set(content["schema"]["properties"])
        await ask(client, path.removeprefix("/v1/"), **content["example"])
