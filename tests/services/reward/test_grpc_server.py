"""The gRPC server of the reward service over a real loopback port, with real tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from forethought.compute.served_model import ServedModel
from forethought.wire import reward_codec as codec
from forethought.wire.v1 import reward_service_pb2 as pb
from forethought.wire.v1.reward_service_pb2_grpc import RewardStub
from services.reward.limits import Limits
from tests.endpoints import (
    RewardEndpoints,
    ids_of,
    plain_entropies,
    plain_logprobs,
    plain_score,
    reward_endpoints,
)
from tests.fake_replica import until
from tests.tiny import MAX_LENGTH_TOKENS, build_model_directory, serve

CONTEXT, TARGET, THOUGHTS = "3 + 4 = ", "seven", ["a", "bb", ""]
ITEM: dict[str, Any] = {"id": "x", "context": CONTEXT, "target": TARGET, "thoughts": THOUGHTS}
TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model directories of policy and baseline."""
    policy, baseline = (
        build_model_directory(tmp_path_factory.mktemp("model"), seed=seed) for seed in (1, 2)
    )
    return policy, baseline


@pytest.fixture
def policy(directories: tuple[Path, Path]) -> ServedModel:
    return serve(directories[0], "policy", version=4)


@pytest.fixture
async def endpoints(
    policy: ServedModel, directories: tuple[Path, Path]
) -> AsyncIterator[RewardEndpoints]:
    async with reward_endpoints(policy, serve(directories[1], "baseline", version=3)) as endpoints:
        yield endpoints


@pytest.fixture
async def channel(endpoints: RewardEndpoints) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(endpoints.urls["grpc"].removeprefix("grpc://")) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return RewardStub(channel)


def score_request(*items: dict[str, Any]) -> pb.ScoreRequest:
    return codec.score_request({"objective": "rlp", "items": items})


def logprobs_request(**changes: Any) -> pb.LogprobsRequest:
    body = {"model": "policy", "prefix": CONTEXT, "continuations": [TARGET]}
    return codec.logprobs_request(body | changes)


async def test_scores_equal_a_plain_computation(stub: Any, directories: tuple[Path, Path]) -> None:
    by_ids = {
        "context_ids": ids_of(CONTEXT),
        "target_ids": ids_of(TARGET),
        "thoughts": [ids_of(thought) for thought in THOUGHTS],
    }
    reply = await stub.Score(score_request(ITEM, by_ids), timeout=10)
    thinking, no_think = plain_score(directories, CONTEXT, TARGET, THOUGHTS)
    first, second = codec.score_answer(reply)["items"]
    for item in (first, second):
        assert item["policy_logprobs"] == pytest.approx(thinking, abs=1e-5)
        assert item["baseline_logprob"] == pytest.approx(no_think, abs=1e-5)
        assert item["rewards"] == pytest.approx([p - no_think for p in thinking], abs=1e-5)
        assert sum(item["advantages"]) == pytest.approx(0, abs=1e-5)
        assert (item["policy_version"], item["baseline_version"]) == (4, 3)
    assert (first["id"], second["id"]) == ("x", None)


@pytest.mark.parametrize(("index", "model"), [(0, "policy"), (1, "baseline")])
async def test_logprobs_equal_a_plain_computation(
    stub: Any, directories: tuple[Path, Path], index: int, model: str
) -> None:
    request = logprobs_request(model=model, continuations=[TARGET, ids_of("8")])
    answer = codec.logprobs_answer(await stub.Logprobs(request, timeout=10))
    assert (answer["model"], answer["epoch"], answer["version"]) == (model, 1, 4 - index)
    for text, one in zip((TARGET, "8"), answer["continuations"], strict=True):
        plain = plain_logprobs(directories[index], ids_of(CONTEXT), ids_of(text))
        assert one["token_ids"] == ids_of(text)
        assert one["logprobs"] == pytest.approx(plain, abs=1e-5)
        assert one["logprob"] == pytest.approx(sum(plain), abs=1e-5)


@pytest.mark.parametrize("renormalise", [False, True])
async def test_entropies_equal_a_plain_computation(
    stub: Any, directories: tuple[Path, Path], renormalise: bool
) -> None:
    body = {"text": TEXT, "top_k": 7, "renormalise": renormalise}
    answer = codec.entropy_answer(await stub.Entropy(codec.entropy_request(body), timeout=10))
    plain = plain_entropies(directories[0], ids_of(TEXT), 7, renormalise)
    assert answer["entropies"] == pytest.approx(plain, abs=1e-5)
    assert (answer["token_ids"], answer["first_position"]) == (ids_of(TEXT), 1)
    default = codec.entropy_request({"token_ids": ids_of(TEXT)})
    found = codec.entropy_answer(await stub.Entropy(default, timeout=10))["entropies"]
    assert found == pytest.approx(
        plain_entropies(directories[0], ids_of(TEXT), 16, False), abs=1e-5
    )


async def test_matches_with_an_invalid_item_among_them(stub: Any) -> None:
    async def match(kind: str, *items: dict[str, Any]) -> list[dict[str, Any]]:
        request = codec.match_request({"kind": kind, "items": items})
        answer = codec.match_answer(await stub.Match(request, timeout=10))
        found: list[dict[str, Any]] = answer["items"]
        return found

    first, second, bad = await match(
        "numeric",
        {"id": "a", "prediction": "1,000", "truth": "1e3"},
        {"prediction": "no", "truth": "7"},
        {"prediction": "7", "truth": "seven"},
    )
    assert (first, second) == ({"id": "a", "match": True}, {"id": None, "match": False})
    assert bad["error"]["status"] == 400
    assert "expected" in bad["error"]["message"]
    cut = {"prediction": "ab", "truth": "abcd", "token_bytes": [1, 3]}
    assert await match("byte_prefix", cut) == [{"id": None, "match": False}]
    assert await match("byte_prefix", cut | {"token_bytes": [2, 2]}) == [
        {"id": None, "match": True}
    ]


async def test_models(stub: Any) -> None:
    answer = codec.models_answer(await stub.Models(codec.models_request(None), timeout=10))
    assert answer["objectives"] == ["rlp"]
    assert (answer["policy"]["name"], answer["policy"]["version"]) == ("policy", 4)
    assert (answer["baseline"]["name"], answer["baseline"]["version"]) == ("baseline", 3)
    assert answer["policy"]["max_length_tokens"] == MAX_LENGTH_TOKENS


async def test_64_concurrent_scores_equal_a_plain_computation(
    stub: Any, directories: tuple[Path, Path]
) -> None:
    contexts = [f"{n} + {n * n} = " for n in range(64)]
    replies = await asyncio.gather(
        *(
            stub.Score(score_request(ITEM | {"context": context}), timeout=30)
            for context in contexts
        )
    )
    for context, reply in zip(contexts, replies, strict=True):
        thinking, no_think = plain_score(directories, context, TARGET, THOUGHTS)
        [item] = codec.score_answer(reply)["items"]
        assert item["policy_logprobs"] == pytest.approx(thinking, abs=1e-5)
        assert item["baseline_logprob"] == pytest.approx(no_think, abs=1e-5)


def bad_requests() -> dict[str, tuple[str, Any]]:
    """Invalid requests, by a fragment of the error message of each."""
    tokens = pb.Tokens(token_ids=b"abc")
    return {
        "expected one that was loaded": (
            "Score",
            codec.score_request({"objective": "nope", "items": [ITEM]}),
        ),
        "expected a list of at least one item": ("Score", score_request()),
        "expected a multiple of 4": (
            "Logprobs",
            pb.LogprobsRequest(
                wire_version=1, model="policy", prefix=tokens, continuations=[tokens]
            ),
        ),
        "got neither of prefix and prefix_ids; expected": (
            "Logprobs",
            logprobs_request(prefix=None),
        ),
        "prefix is empty; expected": ("Logprobs", logprobs_request(prefix="")),
        "expected a list of at least one": ("Logprobs", logprobs_request(continuations=[])),
        "model is the text 'reference'; expected": (
            "Logprobs",
            logprobs_request(model="reference"),
        ),
        "token id 9999, expected": ("Logprobs", logprobs_request(continuations=[[9999]])),
        "kind is": ("Match", codec.match_request({"kind": "near", "items": []})),
        "top_k is": ("Entropy", codec.entropy_request({"text": TEXT, "top_k": 0})),
        "got 1 token; expected": ("Entropy", codec.entropy_request({"token_ids": [5]})),
        "the model takes": (
            "Entropy",
            codec.entropy_request({"token_ids": [5] * (2 * MAX_LENGTH_TOKENS)}),
        ),
    }


@pytest.mark.parametrize("message", sorted(bad_requests()))
async def test_invalid_input_is_refused_with_a_message(stub: Any, message: str) -> None:
    method, request = bad_requests()[message]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request, timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (refused.value.details() or "")


async def test_a_bad_item_of_a_score_fails_alone(stub: Any) -> None:
    bad = {"id": "b", "target": "7", "thoughts": ["a", "b"]}
    reply = await stub.Score(score_request(ITEM, bad), timeout=10)
    good, failed = codec.score_answer(reply)["items"]
    assert len(good["rewards"]) == 3
    assert failed["id"] == "b"
    assert "got neither of context and context_ids; expected" in failed["error"]["message"]


@pytest.mark.parametrize("method", ["Score", "Logprobs", "Match", "Entropy", "Models"])
async def test_another_wire_version_is_refused(stub: Any, method: str) -> None:
    request = getattr(pb, f"{method}Request")(wire_version=99)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(request, timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "speaks wire version 99, this process speaks 2; run the same" in str(refused.value)


async def test_before_the_first_weights_it_is_unavailable() -> None:
    async with (
        reward_endpoints(ServedModel("policy", "cpu"), ServedModel("baseline", "cpu")) as endpoints,
        grpc.aio.insecure_channel(endpoints.urls["grpc"].removeprefix("grpc://")) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await RewardStub(channel).Score(score_request(ITEM), timeout=10)  # type: ignore[no-untyped-call]
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ("forethought-error", "NotReady") in tuple(refused.value.trailing_metadata() or ())


async def test_an_overloaded_server_reports_when_to_retry(
    policy: ServedModel, directories: tuple[Path, Path]
) -> None:
    limits = Limits(max_batch_tokens=64, max_waiting_tokens=64)
    async with (
        reward_endpoints(policy, serve(directories[1], "baseline"), limits) as endpoints,
        grpc.aio.insecure_channel(endpoints.urls["grpc"].removeprefix("grpc://")) as channel,
    ):
        stub: Any = RewardStub(channel)  # type: ignore[no-untyped-call]
        with policy.hold():
            first = stub.Score(score_request(ITEM), timeout=30)
            await until(lambda: endpoints.service.batcher.num_waiting_tokens > 0)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Score(score_request(ITEM), timeout=10)
        assert len((await first).items) == 1
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "retry in 1 s" in (refused.value.details() or "")
    assert ("retry-after", "1") in tuple(refused.value.trailing_metadata() or ())


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("score", {"objective": "rlp", "items": [ITEM | {"thoughts": ["a", [1, 2**32 - 1], []]}]}),
        ("logprobs", {"model": "policy", "prefix_ids": [1], "continuations": ["é", [2]]}),
        (
            "match",
            {
                "kind": "exact",
                "items": [{"id": None, "prediction": "", "truth": "b", "token_bytes": None}],
            },
        ),
        ("entropy", {"text": "ab", "top_k": 3, "renormalise": True}),
        ("entropy", {"token_ids": [1, 2], "renormalise": False}),
    ],
)
def test_a_request_survives_the_wire(method: str, body: dict[str, Any]) -> None:
    request = getattr(codec, f"{method}_request")(body)
    again = type(request).FromString(request.SerializeToString())
    assert getattr(codec, f"{method}_body")(again) == body


async def test_a_passed_deadline_and_a_cancelled_call_free_the_server(
    stub: Any, endpoints: RewardEndpoints, policy: ServedModel
) -> None:
    batcher = endpoints.service.batcher
    with policy.hold():  # the compute thread is blocked
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.Score(score_request(ITEM), timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: batcher.num_waiting_tokens == 0)
        call = stub.Score(score_request(ITEM), timeout=30)
        await until(lambda: batcher.num_waiting_tokens > 0)
        call.cancel()
        await until(lambda: batcher.num_waiting_tokens == 0)
    reply = await stub.Score(score_request(ITEM), timeout=10)
    assert len(reply.items) == 1


async def test_reflection_lists_the_service(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]), timeout=10)
    [reply] = [reply async for reply in call]
    names = {service.name for service in reply.list_services_response.service}
    assert {"forethought.wire.v1.Reward", "grpc.health.v1.Health"} <= names
