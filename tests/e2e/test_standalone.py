"""The reward service alone: a real process on a model directory that plain transformers wrote."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.plain_reward import PlainModel
from tests.e2e.processes import BEARER, Process, eventually
from tests.tiny import CLOSE_ID, OPEN_ID, build_model_directory

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CLOSE = 1e-5
NUM_CALLERS = 64


@dataclass(frozen=True)
class Alone:
    process: Process
    policy: PlainModel
    baseline: PlainModel


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    policy, baseline = (
        build_model_directory(tmp_path_factory.mktemp("model"), kind, seed)
        for kind, seed in (("llama", 5), ("gpt2", 6))
    )
    words = [
        f"reward.policy_path={policy}",
        f"reward.baseline_path={baseline}",
        "reward.http_port=0",
        "reward.device=cpu",
    ]
    log = tmp_path_factory.mktemp("log") / "alone.log"
    process = Process("services.reward", words, log, fresh=True)
    yield Alone(process, PlainModel(policy), PlainModel(baseline))
    if process.exit_status is None:
        process.kill()


async def port_of(process: Process, pattern: str) -> int:
    def look() -> re.Match[str] | None:
        return re.search(pattern, process.log)

    found = await eventually("the service's ports in its log", look, alive=[process])
    assert found is not None
    return int(found[1])


@pytest.fixture
async def client(standalone: Alone) -> AsyncIterator[httpx2.AsyncClient]:
    port = await port_of(standalone.process, r"HTTP on http://127\.0\.0\.1:(\d+)")
    limits = httpx2.Limits(max_connections=NUM_CALLERS)
    url, headers = f"http://127.0.0.1:{port}", dict(BEARER.header())
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=60
    ) as client:
        yield client


async def ask(client: httpx2.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def check_all(client: httpx2.AsyncClient, standalone: Alone, number: int) -> None:
    """All endpoints, with texts of this caller's own length, against a plain computation."""
    policy, baseline = standalone.policy, standalone.baseline
    context, target = f"{'ab' * (number % 11)}{number} + 1 = ", f"{number + 1}"
    item = {
        "id": number,
        "context": context,
        "target": target,
        "thoughts": ["x" * (number % 7), "y"],
    }
    [scores] = (await ask(client, "score", objective="rlp", items=[item]))["items"]
    expected = policy.score(item, (OPEN_ID, CLOSE_ID))
    assert scores["id"] == number
    assert scores["policy_logprobs"] == pytest.approx(expected, abs=CLOSE)
    no_think = sum(baseline.logprobs(policy.ids(context), policy.ids(target), OPEN_ID))
    assert scores["baseline_logprob"] == pytest.approx(no_think, abs=CLOSE)
    assert scores["rewards"] == pytest.approx([e - no_think for e in expected], abs=CLOSE)
    for name, plain in (("policy", policy), ("baseline", baseline)):
        found = await ask(client, "logprobs", model=name, prefix=context, continuations=[target])
        logprobs = plain.logprobs(plain.ids(context), plain.ids(target))
        assert found["continuations"][0]["logprobs"] == pytest.approx(logprobs, abs=CLOSE)
    assert "policy: computing in float32 (bfloat16 gains nothing" in standalone.process.log
    assert "baseline: computing in float32 (as configured)" in standalone.process.log
    entropies = (await ask(client, "entropy", text=context))["entropies"]
    assert entropies == pytest.approx(policy.entropies(policy.ids(context), 16), abs=CLOSE)
    match = {"prediction": target[:1], "truth": target}  # one token per byte
    [verdict] = (await ask(client, "match", kind="byte_prefix", items=[match]))["items"]
    assert verdict["match"] is True


async def test_one_caller_gets_what_transformers_computes(
    client: httpx2.AsyncClient, standalone: Alone
) -> None:
    models = (await client.get("/v1/models")).json()
    for name in ("policy", "baseline"):
        assert (models[name]["epoch"], models[name]["version"]) == (0, 0)
    await check_all(client, standalone, 7)


async def test_sixty_four_callers_at_once_get_the_same(
    client: httpx2.AsyncClient, standalone: Alone
) -> None:
    await asyncio.gather(*(check_all(client, standalone, number) for number in range(NUM_CALLERS)))


async def test_the_ops_port_says_ready_and_sigterm_ends_it_cleanly(standalone: Alone) -> None:
    port = await port_of(standalone.process, r"ops port (\d+)")
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as ops:
        ready = await ops.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        metrics = (await ops.get("/metrics")).text
    for line in ("reward_waiting_tokens 0.0", 'served_version{model="baseline"} 0.0', "ready 1.0"):
        assert f"\nforethought_{line}\n" in metrics
    scored = re.search(
        r'http_request_seconds_count{endpoint="/v1/score",status="200"} (.+)', metrics
    )
    assert scored is not None
    assert float(scored[1]) == NUM_CALLERS + 1
    assert "forethought_worker_" not in metrics  # it has no queue
    assert standalone.process.end() == 0
    assert "Traceback" not in standalone.process.log


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward.baseline_path=x"], "reward.policy_path is not"),
        (["reward.policy_path=nowhere"], "'nowhere' does not exist"),
    ],
)
def test_bad_directories_are_told_in_one_line(
    tmp_path: Path, words: list[str], message: str
) -> None:
    process = Process(
        "services.reward", [*words, "reward.http_port=0"], tmp_path / "bad.log", token=""
    )
    assert process.wait(60) == 2
    assert message in process.log
    assert "Traceback" not in process.log
    assert "generated" not in process.log  # a token for a service that never starts


async def test_without_a_token_one_is_made_up_and_shown_once(tmp_path: Path) -> None:
    policy = build_model_directory(tmp_path / "model")
    words = [f"reward.policy_path={policy}", "reward.http_port=0", "reward.device=cpu"]
    process = Process("services.reward", words, tmp_path / "fresh.log", token="")
    try:
        port = await port_of(process, r"HTTP on http://127\.0\.0\.1:(\d+)")
        token = process.find(r"generated one: (\S+)")
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/v1/models")).status_code == 401
            headers = {"authorization": f"Bearer {token}"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert process.end() == 0
    finally:
        process.kill()
    assert token is not None
    assert process.log.count(token) == 1
