"""The HTTP server with a real tiny model: replies and refusals."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from forethought import objectives
from forethought.compute.served_model import ServedModel
from forethought.errors import NotReady
from forethought.types import Prompting, Thought
from services.reward.groups import GroupLikelihoods, GroupQuery
from services.reward.http.openapi import ENDPOINTS
from services.reward.http.server import RewardApp
from services.reward.limits import Limits
from services.reward.scoring import Scorer
from services.reward.service import RewardService
from tests.endpoints import OPEN, http_endpoint
from tests.tiny import (
    CLOSE_ID,
    MAX_LENGTH_TOKENS,
    OPEN_ID,
    THINK_CLOSE,
    THINK_OPEN,
    VOCAB_SIZE,
    build_model_directory,
    build_tokenizer,
    serve,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_BODY_BYTES = 20_000
GOOD: dict[str, Any] = {"id": "a", "context": "3 + 4 = ", "target": "7", "thoughts": ["a", "bb"]}


def ids_of(text: str) -> list[int]:
    ids: list[int] = build_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[ServedModel, ServedModel]:
    policy, baseline = (
        build_model_directory(tmp_path_factory.mktemp("model"), seed=seed) for seed in (1, 2)
    )
    return serve(policy, "policy", version=4), serve(baseline, "baseline", version=3)


def make_app(
    policy: ServedModel,
    baseline: ServedModel | None,
    markers: tuple[str, str] = (THINK_OPEN, THINK_CLOSE),
) -> RewardApp:
    service = RewardService(
        Scorer(policy, baseline, max_batch_tokens=1000),
        {"rlp": objectives.load("rlp")},
        think_open=markers[0],
        think_close=markers[1],
        limits=Limits(max_batch_tokens=1000, max_request_tokens=2000),
    )
    return RewardApp(service, MAX_BODY_BYTES, OPEN)


def connect(app: RewardApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://reward")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["asgi", "connection"])
async def transport(
    served: tuple[ServedModel, ServedModel], request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[], httpx2.AsyncClient]]:
    """One server for the file, which no test changes."""
    app = make_app(*served)
    if request.param == "asgi":
        yield lambda: connect(app)
        return
    async with http_endpoint(app) as url:
        # verify=False: loading certificates takes longer than a test
        yield lambda: httpx2.AsyncClient(base_url=url, verify=False)


@pytest_asyncio.fixture(loop_scope="module")
async def client(
    transport: Callable[[], httpx2.AsyncClient],
) -> AsyncIterator[httpx2.AsyncClient]:
    """Both ways to the same endpoints: ASGI, and the fast path of the service's own protocol."""
    async with transport() as client:
        yield client


async def score(client: httpx2.AsyncClient, *items: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/score", json={"objective": "rlp", "items": items})
    assert response.status_code == 200, response.text
    answers: list[dict[str, Any]] = response.json()["items"]
    assert len(answers) == len(items)
    return answers


async def test_an_item_is_scored_like_the_core_does(
    client: httpx2.AsyncClient, served: tuple[ServedModel, ServedModel]
) -> None:
    [answer] = await score(client, GOOD)

    thoughts = tuple(Thought(tuple(ids_of(t)), (), (), False) for t in GOOD["thoughts"])
    prompting = Prompting(bridge_ids=(OPEN_ID,), close_ids=(CLOSE_ID,))
    context, target = (tuple(ids_of(GOOD[key])) for key in ("context", "target"))
    query = GroupQuery(context, target, prompting, thoughts)
    [core] = Scorer(*served, max_batch_tokens=1000).score_groups([query])
    assert isinstance(core, GroupLikelihoods)
    assert answer["policy_logprobs"] == pytest.approx(core.policy_logprobs_G, abs=1e-6)
    assert answer["baseline_logprob"] == pytest.approx(core.baseline_logprob, abs=1e-6)
    first, second = (p - core.baseline_logprob for p in core.policy_logprobs_G)
    assert answer["rewards"] == pytest.approx([first, second], abs=1e-5)
    assert answer["advantages"] == pytest.approx([first - second, second - first], abs=1e-5)
    assert (answer["id"], answer["policy_version"], answer["baseline_version"]) == ("a", 4, 3)


async def test_text_and_ids_are_equivalent_and_a_close_token_counts_once(
    client: httpx2.AsyncClient,
) -> None:
    by_ids = {
        "id": 2,
        "context_ids": ids_of(GOOD["context"]),
        "target_ids": ids_of(GOOD["target"]),
        "thoughts": [ids_of("a"), [*ids_of("bb"), CLOSE_ID]],
    }
    closed = GOOD | {"thoughts": [f"a{THINK_CLOSE}", "bb"]}
    answers = await score(client, GOOD, by_ids, closed)
    for answer in answers[1:]:
        assert answer["rewards"] == pytest.approx(answers[0]["rewards"], abs=1e-5)
    assert [answer["id"] for answer in answers] == ["a", 2, "a"]


async def test_texts_are_tokenised_separately_and_a_thought_may_be_empty(
    client: httpx2.AsyncClient,
) -> None:
    several = GOOD | {"target": "seven", "thoughts": ["", [CLOSE_ID], "é"]}
    [answer] = await score(client, several)
    assert len(answer["rewards"]) == 3
    assert answer["rewards"][0] == pytest.approx(answer["rewards"][1], abs=1e-5)


BAD_ITEMS: dict[str, tuple[Any, str]] = {
    "not an object": (5, "the item is 5; expected an object"),
    "null": (None, "the item is missing or null"),
    "unknown key": (GOOD | {"thougths": []}, "unknown key 'thougths'; expected only id, context"),
    "surrogate key": (GOOD | {"\ud800": 1}, r"unknown key '\ud800'"),
    "id list": (GOOD | {"id": [1]}, "id is an array"),
    "id bool": (GOOD | {"id": True}, "id is true"),
    "id surrogate": (GOOD | {"id": "\udc80"}, "expected valid text or an integer"),
    "both contexts": (GOOD | {"context_ids": [1]}, "got both of context and context_ids"),
    "neither context": ({k: v for k, v in GOOD.items() if k != "context"}, "got neither"),
    "both targets": (GOOD | {"target_ids": [1]}, "got both of target and target_ids"),
    "empty context": (GOOD | {"context": ""}, "context is empty"),
    "empty target": (GOOD | {"target": ""}, "target is empty"),
    "empty target ids": (GOOD | {"target": None, "target_ids": []}, "target is empty"),
    "no thoughts": (GOOD | {"thoughts": []}, "thoughts is an empty array"),
    "thoughts text": (GOOD | {"thoughts": "a"}, "thoughts is the text 'a'"),
    "thoughts missing": ({k: v for k, v in GOOD.items() if k != "thoughts"}, "missing or null"),
    "thought null": (GOOD | {"thoughts": ["a", None]}, "thoughts[1] is missing or null"),
    "thought object": (GOOD | {"thoughts": ["a", {"b": 1}]}, "thoughts[1] is an object"),
    "one thought": (GOOD | {"thoughts": ["a"]}, "thoughts holds 1; expected at least 2"),
    "text number": (GOOD | {"context": 7}, "context is 7; expected text"),
    "text list": (GOOD | {"context": [7]}, "ids go into context_ids"),
    "ids text": (GOOD | {"context": None, "context_ids": "x"}, "expected a list of token ids"),
    "id float": (GOOD | {"thoughts": ["a", [1.0]]}, "thoughts[1][0] is 1.0"),
    "id true": (GOOD | {"thoughts": ["a", [0, True]]}, "thoughts[1][1] is true"),
    "id negative": (GOOD | {"thoughts": ["a", [-1]]}, "thoughts[1][0] is -1"),
    "id string": (GOOD | {"thoughts": ["a", ["1"]]}, "thoughts[1][0] is the text '1'"),
    "id nested": (GOOD | {"thoughts": ["a", [[1]]]}, "thoughts[1][0] is an array"),
    "id out of range": (GOOD | {"thoughts": ["a", [VOCAB_SIZE]]}, "expected 0 to 258"),
    "id huge": (GOOD | {"thoughts": ["a", [10**40]]}, "expected 0 to 258"),
    "surrogate": (GOOD | {"context": "a\ud83d"}, "half a surrogate pair"),
    "surrogate thought": (GOOD | {"thoughts": ["a", "\udfff"]}, "thoughts[1] holds half"),
    "too long": (GOOD | {"context": "x" * MAX_LENGTH_TOKENS}, "the model takes 96"),
    "opens": (GOOD | {"target": THINK_OPEN}, "think-open token"),
}


@pytest.mark.parametrize(("item", "message"), BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
async def test_a_bad_item_fails_alone(client: httpx2.AsyncClient, item: Any, message: str) -> None:
    body = json.dumps({"objective": "rlp", "items": [GOOD, item, GOOD]})  # surrogates as escapes
    response = await client.post("/v1/score", content=body)
    assert response.status_code == 200, response.text
    before, bad, after = response.json()["items"]
    assert bad["error"]["status"] == 400
    assert message in bad["error"]["message"]
    assert bad.keys() == {"id", "error"}
    assert before == after
    assert len(before["rewards"]) == 2


def request_with(**changes: Any) -> bytes:
    return json.dumps({"objective": "rlp", "items": [GOOD]} | changes).encode()


BAD_REQUESTS = {
    "empty": (b"", 400, "not JSON"),
    "not json": (b"{", 400, "not JSON"),
    "invalid utf-8": (b'{"objective": "\xff\xfe"}', 400, "byte 15 of the body is 0xff"),
    "half a character": (request_with()[:-3] + b'\xe2\x82"]}', 400, "not UTF-8"),
    "nan": (b'{"objective": "rlp", "items": [NaN]}', 400, "the body holds NaN"),
    "infinity": (b'{"objective": "rlp", "items": [-Infinity]}', 400, "-Infinity"),
    "deep": (b"[" * 19_000, 400, "not JSON"),
    "digits": (b'{"items": ' + b"9" * 5000 + b"}", 400, "not JSON"),
    "list": (b"[]", 400, "the body is an empty array"),
    "string": (b'"\\ud800"', 400, "the body is the text '\\ud800'"),
    "unknown key": (request_with(model="/etc/passwd"), 400, "unknown key 'model'"),
    "objective missing": (b'{"items": []}', 400, "objective is missing or null"),
    "objective number": (request_with(objective=1), 400, "objective is 1"),
    "objective unknown": (request_with(objective="ntp"), 400, "loaded at start: rlp"),
    "objective module": (request_with(objective="os.path"), 400, "loaded at start: rlp"),
    "objective surrogate": (request_with(objective="\ud800"), 400, "got objective '\\ud800'"),
    "items missing": (b'{"objective": "rlp"}', 400, "items is missing or null"),
    "items empty": (request_with(items=[]), 400, "items is an empty array"),
    "items object": (request_with(items={"a": 1}), 400, "items is an object"),
    "too many bytes": (request_with(items=["x" * MAX_BODY_BYTES]), 413, "more than 20000 bytes"),
    "too many tokens": (
        request_with(items=[GOOD | {"thoughts": [[]] * 1000}]),
        413,
        "at most 2000",
    ),
}


@pytest.mark.parametrize(
    ("body", "status", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys()
)
async def test_a_bad_request_is_refused_as_a_whole(
    client: httpx2.AsyncClient, body: bytes, status: int, message: str
) -> None:
    response = await client.post("/v1/score", content=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["status"] == status
    assert message in error["message"]
    assert len(error["message"]) < 400
    await score(client, GOOD)  # later requests are unaffected


async def test_a_body_without_a_length_is_bounded_too(client: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 1000 + 5):
            yield b" " * 1000

    response = await client.post("/v1/score", content=chunks())
    assert response.status_code == 413
    await score(client, GOOD)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/score", 405), ("POST", "/v1/scores", 404)]
)
async def test_other_paths_and_methods_are_refused_in_the_same_form(
    client: httpx2.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["status"] == status


async def test_models_reports_what_is_served(
    client: httpx2.AsyncClient, served: tuple[ServedModel, ServedModel]
) -> None:
    body = (await client.get("/v1/models")).json()
    with served[0].hold() as serving:
        num_parameters = sum(p.numel() for p in serving.language_model.model.parameters())
    assert body["policy"] == {
        "name": "policy",
        "epoch": 1,
        "version": 4,
        "sha256": "policy-4",
        "dtype": "float32",
        "num_parameters": num_parameters,
        "max_length_tokens": MAX_LENGTH_TOKENS,
    }
    assert body["baseline"]["version"] == 3
    assert body["objectives"] == ["rlp"]
    async with connect(make_app(served[0], None)) as standalone:
        assert (await standalone.get("/v1/models")).json()["baseline"] is None


async def test_before_the_first_weights_it_is_not_ready(
    served: tuple[ServedModel, ServedModel],
) -> None:
    async with connect(make_app(ServedModel("policy", "cpu"), None)) as client:
        for answer in (
            await client.get("/v1/models"),
            await client.post("/v1/score", content=request_with()),
        ):
            assert answer.status_code == NotReady.http_status
            assert "weights yet" in answer.json()["error"]["message"]


async def test_before_the_first_baseline_the_policy_replaces_it(
    served: tuple[ServedModel, ServedModel],
) -> None:
    async with connect(make_app(served[0], ServedModel("baseline", "cpu"))) as client:
        assert (await client.get("/v1/models")).json()["baseline"] is None
        answer = (await client.post("/v1/score", content=request_with())).json()
    (item,) = answer["items"]
    assert item["baseline_version"] == item["policy_version"]


async def test_a_model_without_the_markers_is_not_the_callers_fault(
    served: tuple[ServedModel, ServedModel],
) -> None:
    async with connect(make_app(*served, markers=("", "</plan>"))) as client:
        response = await client.post("/v1/score", content=request_with())
    assert response.status_code == 503
    assert "think marker '' is 0 tokens" in response.json()["error"]["message"]


async def test_a_defect_is_a_500_that_leaks_no_internals(
    served: tuple[ServedModel, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("/srv/secret")

    monkeypatch.setattr(Scorer, "score_groups", fail)
    transport = httpx2.ASGITransport(make_app(*served), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://reward") as client:
        response = await client.post("/v1/score", content=request_with())
    assert response.status_code == 500
    assert response.json()["error"]["message"].startswith("internal error (KeyError)")
    assert "secret" not in response.text


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_docs_load_nothing(client: httpx2.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"<(script|link|img|iframe)|\ssrc=|@import|url\(", response.text)
    targets = re.findall(r'href="([^"]*)"', response.text)
    assert {target for target in targets if not target.startswith("#")} == {"openapi.json"}
    for target in targets[1:]:
        assert f'id="{target[1:]}"' in response.text
    for endpoint in ENDPOINTS:
        assert f"POST {endpoint}" in response.text


async def test_commands_of_the_docs_run_as_printed(client: httpx2.AsyncClient) -> None:
    page = html.unescape((await client.get("/docs")).text)
    commands = [shlex.split(text) for text in re.findall(r"<pre>(curl .*?)</pre>", page, re.DOTALL)]
    assert len(commands) == len(ENDPOINTS) + 1
    for command in commands:
        sent = {"content": command[command.index("-d") + 1]} if "-d" in command else {}
        method = "POST" if sent else "GET"
        assert (await client.request(method, command[2], **sent)).status_code == 200, command


async def test_openapi_carries_bodies_and_examples(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/docs")).status_code == 200
    schema = (await client.get("/openapi.json")).json()
    operation = schema["paths"]["/v1/score"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    item = body["schema"]["properties"]["items"]["items"]
    assert set(body["example"]["items"][0]) <= set(item["properties"])
    assert body["example"]["objective"] == "rlp"
    assert {"200", "400", "413", "503"} <= operation["responses"].keys()
    assert schema["components"]["schemas"]["ItemScores"]["examples"]
    assert "/v1/models" in schema["paths"]
    dangling = [part for part in json.dumps(schema).split('"') if part.startswith("#/")]
    for reference in dangling:
        assert reference.rsplit("/", 1)[1] in schema["components"]["schemas"]
