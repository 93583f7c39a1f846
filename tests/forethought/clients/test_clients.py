"""The clients, sync and async, over real HTTP and gRPC: replies, errors, deadlines and retries."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest

from forethought.clients import (
    AsyncRewardClient,
    ItemScores,
    MatchItem,
    Retries,
    RewardClient,
    RolloutClient,
    ScoreItem,
)
from forethought.clients.retrying import AttemptFailed, RetryBudget
from forethought.errors import (
    ForethoughtError,
    InvalidInput,
    NotReady,
    Overloaded,
    Stale,
    Superseded,
    Unreachable,
    error_of_grpc,
)
from forethought.rpc.errors import ERROR_KEY, errors_as_status, retry_after_s, trailers_of
from forethought.wire import reward_codec as codec
from forethought.wire.v1 import reward_service_pb2 as pb
from forethought.wire.v1 import reward_service_pb2_grpc as pb_grpc
from tests.endpoints import (
    RewardEndpoints,
    grpc_endpoint,
    http_endpoint,
    ids_of,
    plain_entropies,
    plain_logprobs,
    plain_score,
    reward_endpoints,
)
from tests.fake_replica import until
from tests.tiny import build_model_directory, serve

CONTEXT, TARGET, THOUGHTS = "3 + 4 = ", "seven", ("a", "bb")
ITEM = ScoreItem(CONTEXT, TARGET, THOUGHTS)
QUICK = Retries(first_wait_s=0.01)
MODELS: dict[str, Any] = {
    "policy": {
        "name": "policy",
        "epoch": 1,
        "version": 4,
        "sha256": "9f",
        "dtype": "float32",
        "num_parameters": 10,
        "max_length_tokens": 96,
    },
    "baseline": None,
    "objectives": ["rlp"],
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of policy and baseline."""
    policy, baseline = (
        build_model_directory(tmp_path_factory.mktemp("model"), seed=seed) for seed in (1, 2)
    )
    return policy, baseline


@pytest.fixture
async def endpoints(directories: tuple[Path, Path]) -> AsyncIterator[RewardEndpoints]:
    policy, baseline = directories
    async with reward_endpoints(
        serve(policy, "policy", version=4), serve(baseline, "baseline", version=3)
    ) as endpoints:
        yield endpoints


@pytest.fixture(params=["http", "grpc"])
def scheme(request: pytest.FixtureRequest) -> str:
    scheme: str = request.param
    return scheme


@pytest.fixture
def url(endpoints: RewardEndpoints, scheme: str) -> str:
    return endpoints.urls[scheme]


class Failing(pb_grpc.RewardServicer):
    """A reward server, over HTTP and gRPC, that returns errors to its first callers."""

    service_name = "forethought.wire.v1.Reward"

    def __init__(self, *failures: ForethoughtError, wire_version: int = 1) -> None:
        self.failures = list(failures)
        self.wire_version = wire_version
        self.num_asked = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_RewardServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Models(
        self, request: pb.ModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelsReply:
        async with errors_as_status(context):
            self._ask()
        reply = codec.models_reply(MODELS)
        reply.wire_version = self.wire_version
        return reply

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, headers, body = 200, [], json.dumps(MODELS)
        try:
            self._ask()
        except ForethoughtError as error:
            status = error.http_status
            body = json.dumps({"error": {"status": status, "message": str(error)}})
            if isinstance(error, Overloaded):
                headers = [(b"retry-after", b"%d" % error.retry_after_s)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    def open(self, scheme: str) -> AbstractAsyncContextManager[str]:
        return http_endpoint(self) if scheme == "http" else grpc_endpoint(self)

    def _ask(self) -> None:
        self.num_asked += 1
        if self.failures:
            raise self.failures.pop(0)


def url_of(scheme: str, opened: str) -> str:
    return opened if scheme == "http" else f"grpc://{opened}"


async def ask_models(url: str, kind: str, **options: Any) -> Any:
    """``models()`` by the sync or the async client."""
    if kind == "async":
        async with AsyncRewardClient(url, **options) as client:
            return await client.models()

    def attempt() -> Any:
        with RewardClient(url, **options) as client:
            return client.models()

    return await asyncio.to_thread(attempt)


def ask_everything(client: RewardClient) -> list[Any]:
    return [
        client.score([ITEM, ScoreItem(ids_of(CONTEXT), ids_of(TARGET), (ids_of("a"), "bb"))]),
        client.logprobs(CONTEXT, [TARGET, ids_of("8")], model="baseline"),
        client.match([MatchItem("1,000", "1e3"), MatchItem("1", "2")], kind="numeric"),
        client.entropy(CONTEXT, top_k=5, renormalise=True),
        client.models(),
    ]


async def ask_everything_async(client: AsyncRewardClient) -> list[Any]:
    return [
        await client.score([ITEM, ScoreItem(ids_of(CONTEXT), ids_of(TARGET), (ids_of("a"), "bb"))]),
        await client.logprobs(CONTEXT, [TARGET, ids_of("8")], model="baseline"),
        await client.match([MatchItem("1,000", "1e3"), MatchItem("1", "2")], kind="numeric"),
        await client.entropy(CONTEXT, top_k=5, renormalise=True),
        await client.models(),
    ]


async def test_every_answer_is_that_of_a_plain_computation(
    url: str, directories: tuple[Path, Path]
) -> None:
    async with AsyncRewardClient(url) as client:
        scores, logprobs, matches, entropies, models = await ask_everything_async(client)
    thinking, no_think = plain_score(directories, CONTEXT, TARGET, THOUGHTS)
    for item in scores:
        assert item.policy_logprobs_G == pytest.approx(thinking, abs=1e-5)
        assert item.baseline_logprob == pytest.approx(no_think, abs=1e-5)
        assert item.rewards_G == pytest.approx([p - no_think for p in thinking], abs=1e-5)
        assert (item.policy_version, item.baseline_version) == (4, 3)
    for text, one in zip((TARGET, "8"), logprobs.continuations, strict=True):
        plain = plain_logprobs(directories[1], ids_of(CONTEXT), ids_of(text))
        assert one.logprobs_H == pytest.approx(plain, abs=1e-5)
        assert (one.token_ids_H, one.total) == (ids_of(text), pytest.approx(sum(plain), abs=1e-5))
    assert matches == (True, False)
    plain = plain_entropies(directories[0], ids_of(CONTEXT), 5, True)
    assert entropies.entropies == pytest.approx(plain, abs=1e-5)
    assert (models.policy.version, models.baseline.version, models.objectives) == (4, 3, ("rlp",))


async def test_both_transports_and_both_kinds_of_client_agree(
    endpoints: RewardEndpoints,
) -> None:
    answers = []
    for url in endpoints.urls.values():
        async with AsyncRewardClient(url) as client:
            answers.append(await ask_everything_async(client))
        with RewardClient(url) as sync_client:
            answers.append(await asyncio.to_thread(ask_everything, sync_client))
    assert all(answer == answers[0] for answer in answers[1:])


async def test_a_failed_item_is_returned_as_its_error(url: str) -> None:
    async with AsyncRewardClient(url) as client:
        good, empty = await client.score([ITEM, ScoreItem("", "7", THOUGHTS)])
        wrong = await client.match([MatchItem("7", "seven")], kind="numeric")
    assert isinstance(good, ItemScores)
    assert isinstance(empty, InvalidInput)
    assert "context is empty; expected" in str(empty)
    assert isinstance(wrong[0], InvalidInput)


async def test_64_async_callers_at_once(url: str, directories: tuple[Path, Path]) -> None:
    contexts = [f"{n} - {n} = " for n in range(64)]
    async with AsyncRewardClient(url) as client:
        answers = await asyncio.gather(
            *(client.score([ScoreItem(context, TARGET, THOUGHTS)]) for context in contexts)
        )
    for context, (item,) in zip(contexts, answers, strict=True):
        thinking, _ = plain_score(directories, context, TARGET, THOUGHTS)
        assert isinstance(item, ItemScores)
        assert item.policy_logprobs_G == pytest.approx(thinking, abs=1e-5)


BAD: dict[str, Callable[[AsyncRewardClient], Any]] = {
    "expected one that was loaded": lambda c: c.score([ITEM], objective="nope"),
    "expected a list of at least one": lambda c: c.logprobs(CONTEXT, []),
    "got 1 token; expected": lambda c: c.entropy([5]),
    "expected token ids|token id": lambda c: c.logprobs([-1], [[5]]),
    "cannot be encoded|half a surrogate": lambda c: c.logprobs("\ud800", ["a"]),
}


@pytest.mark.parametrize("says", sorted(BAD))
async def test_bad_input_comes_back_as_it_was_raised(url: str, says: str) -> None:
    async with AsyncRewardClient(url) as client:
        with pytest.raises(InvalidInput, match=says):
            await BAD[says](client)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "failure", [NotReady("no weights"), Unreachable("no Redis"), Overloaded("full", 0)], ids=repr
)
async def test_a_retryable_failure_is_retried(
    scheme: str, kind: str, failure: ForethoughtError
) -> None:
    server = Failing(failure, failure)
    async with server.open(scheme) as opened:
        models = await ask_models(url_of(scheme, opened), kind, retries=QUICK)
    assert models.objectives == ("rlp",)
    assert server.num_asked == 3


async def test_retry_after_is_honoured(scheme: str) -> None:
    server = Failing(Overloaded("full", retry_after_s=1))
    started_s = time.monotonic()
    async with server.open(scheme) as opened:
        await ask_models(url_of(scheme, opened), "async", retries=QUICK)
    assert time.monotonic() - started_s >= 1.0
    assert server.num_asked == 2


async def test_a_wait_beyond_the_deadline_is_not_started(scheme: str) -> None:
    server = Failing(Overloaded("full", retry_after_s=60))
    async with server.open(scheme) as opened:
        with pytest.raises(Overloaded, match="full") as refused:
            await ask_models(url_of(scheme, opened), "async", timeout_s=5)
    assert refused.value.retry_after_s == 60
    assert server.num_asked == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("failure", [InvalidInput("got x"), Stale("old")], ids=repr)
async def test_a_permanent_failure_is_not_retried(
    scheme: str, kind: str, failure: ForethoughtError
) -> None:
    server = Failing(failure)
    async with server.open(scheme) as opened:
        with pytest.raises(type(failure), match=str(failure)):
            await ask_models(url_of(scheme, opened), kind)
    assert server.num_asked == 1


async def test_attempts_run_out(scheme: str) -> None:
    server = Failing(*(NotReady("no weights") for _ in range(9)))
    async with server.open(scheme) as opened:
        retries = Retries(max_attempts=3, first_wait_s=0.01)
        with pytest.raises(NotReady, match="no weights"):
            await ask_models(url_of(scheme, opened), "async", retries=retries)
    assert server.num_asked == 3


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_deadline_bounds_all(endpoints: RewardEndpoints, url: str, kind: str) -> None:
    batcher = endpoints.service.batcher

    def attempt() -> None:
        with RewardClient(url) as client:
            client.score([ITEM], timeout_s=0.3)

    async def ask_async() -> None:
        async with AsyncRewardClient(url) as client:
            await client.score([ITEM], timeout_s=0.3)

    with endpoints.service._scorer.policy.hold():
        with pytest.raises(Unreachable, match="no answer within"):
            await (asyncio.to_thread(attempt) if kind == "sync" else ask_async())
        await until(lambda: batcher.num_waiting_tokens == 0)


async def test_cancelling_frees_the_server(endpoints: RewardEndpoints, url: str) -> None:
    batcher = endpoints.service.batcher
    async with AsyncRewardClient(url) as client:
        with endpoints.service._scorer.policy.hold():
            asking = asyncio.create_task(client.score([ITEM]))
            await until(lambda: batcher.num_waiting_tokens > 0)
            asking.cancel()
            await until(lambda: batcher.num_waiting_tokens == 0)
        (item,) = await client.score([ITEM])
    assert isinstance(item, ItemScores)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_unreachable_service(scheme: str, kind: str) -> None:
    async with Failing().open(scheme) as opened:
        url = url_of(scheme, opened)
    with pytest.raises(Unreachable, match=r"cannot reach .*; is the service running there"):
        await ask_models(url, kind, timeout_s=5, retries=Retries(max_attempts=2, first_wait_s=0.01))


async def test_another_wire_version_is_refused() -> None:
    async with Failing(wire_version=3).open("grpc") as address:
        with pytest.raises(InvalidInput, match="speaks wire version 3, this process speaks 2; run"):
            await ask_models(f"grpc://{address}", "async")


async def test_the_wrong_service_is_reported(endpoints: RewardEndpoints) -> None:
    def attempt() -> None:
        from forethought.types import Sampling

        with RolloutClient(endpoints.urls["grpc"]) as client:
            client.generate(Sampling(2, 2), prefix_ids=(1,))

    with pytest.raises(InvalidInput, match="does not serve this"):
        await asyncio.to_thread(attempt)

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    async with http_endpoint(page) as url:
        with pytest.raises(ForethoughtError, match="something else than JSON; expected"):
            await ask_models(url, "async")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://h:1", "http://", ""])
def test_a_url_without_a_known_transport(url: str) -> None:
    with pytest.raises(InvalidInput, match="expected http://host:port"):
        RewardClient(url)


def test_the_rollout_service_is_served_over_grpc_only() -> None:
    with pytest.raises(InvalidInput, match="expected grpc://host:port"):
        RolloutClient("http://127.0.0.1:8080")


def test_waits_double_up_to_a_limit_and_never_undercut_the_server() -> None:
    retries = Retries(first_wait_s=0.1, longest_wait_s=0.5)
    assert [retries.wait_s(n, 0) for n in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert retries.wait_s(1, 7.0) == 7.0


def test_the_retry_budget_ends_with_the_deadline() -> None:
    refused = AttemptFailed(NotReady("no weights"), retryable=True, retry_after_s=3)
    waits_s = {RetryBudget(10, Retries()).wait_after(refused) for _ in range(20)}
    assert 3 <= min(waits_s) < max(waits_s) < 4, "at least the server's wait, plus jitter"
    with pytest.raises(NotReady, match="no weights"):
        RetryBudget(2, Retries()).wait_after(refused)


@pytest.mark.parametrize(
    "error",
    [InvalidInput("a"), NotReady("b"), Stale("c"), Unreachable("d"), Overloaded("e", 7), Superseded("f")],
    ids=repr,
)  # fmt: skip
def test_errors_survive_the_wire(error: ForethoughtError) -> None:
    trailers = dict(trailers_of(error))
    back = error_of_grpc(error.grpc_code, str(error), trailers[ERROR_KEY], retry_after_s(trailers))
    assert (type(back), str(back)) == (type(error), str(error))
    assert getattr(back, "retry_after_s", None) == getattr(error, "retry_after_s", None)
    by_code = error_of_grpc(error.grpc_code, "x", "os")
    assert by_code.grpc_code == error.grpc_code
