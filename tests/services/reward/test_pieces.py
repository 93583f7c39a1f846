"""Large groups in pieces: the same numbers, turns with others, one version, an end when callers leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from forethought import objectives
from forethought.compute.served_model import ServedModel
from forethought.errors import NotReady
from services.reward.limits import Limits
from services.reward.scoring import Scorer
from services.reward.service import RewardService
from tests.fake_replica import until
from tests.tiny import THINK_CLOSE, THINK_OPEN, build_model_directory, manifest, serve

LARGE: dict[str, Any] = {
    "id": "large",
    "context": "abcdef",
    "target": "gh",
    "thoughts": [chr(97 + index) * (index % 5) for index in range(20)],
}
SMALL: dict[str, Any] = {"id": "small", "context": "abc", "target": "d", "thoughts": ["x", "yy"]}
MAX_BATCH_TOKENS = 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_directory(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture
def policy(directory: Path) -> ServedModel:
    return serve(directory, "policy")


def service_of(policy: ServedModel, max_batch_tokens: int) -> RewardService:
    return RewardService(
        Scorer(policy, None, 4096),
        {"rlp": objectives.load("rlp")},
        think_open=THINK_OPEN,
        think_close=THINK_CLOSE,
        limits=Limits(max_batch_tokens),
    )


@pytest.fixture
async def service(policy: ServedModel) -> AsyncIterator[RewardService]:
    service = service_of(policy, MAX_BATCH_TOKENS)
    yield service
    await service.close()


async def test_a_group_in_pieces_is_scored_as_in_one(
    service: RewardService, policy: ServedModel
) -> None:
    items = [SMALL, LARGE, SMALL, LARGE | {"context": "zz"}, {"context": "no target"}]
    whole = (await service_of(policy, 1 << 16).score("rlp", items))["items"]
    parted = (await service.score("rlp", items))["items"]
    assert service.batcher.num_batches >= 10
    assert parted[-1] == whole[-1]
    for one, other in zip(parted[:-1], whole[:-1], strict=True):
        assert one["id"] == other["id"]
        for key in ("rewards", "advantages", "policy_logprobs", "baseline_logprob"):
            assert one[key] == pytest.approx(other[key], abs=1e-5)  # type: ignore[literal-required]


async def test_others_take_turns_and_a_caller_who_leaves_takes_none(
    service: RewardService, policy: ServedModel
) -> None:
    batcher = service.batcher
    with policy.hold():
        large = asyncio.create_task(service.score("rlp", [LARGE]))
        await until(lambda: batcher.num_waiting_tokens > 0)
        small = asyncio.create_task(service.score("rlp", [SMALL]))
        await until(lambda: len(batcher._queue) == 1)
    await small
    assert not large.done()
    num_batches = batcher.num_batches
    large.cancel()
    await asyncio.wait((large,))
    await service.score("rlp", [SMALL])
    assert batcher.num_waiting_tokens == 0
    assert batcher.num_batches <= num_batches + 2  # the piece in progress, and the small one


async def test_a_group_is_scored_by_one_version(
    service: RewardService, policy: ServedModel, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, run = iter(range(1, 100)), service.batcher._run
    num_changes = 2

    async def changing(jobs: list[Any]) -> list[Any]:
        found = await run(jobs)
        if (version := next(versions)) <= num_changes:
            policy.load(directory, manifest("policy", version=version))
        return found

    monkeypatch.setattr(service.batcher, "_run", changing)
    [item] = (await service.score("rlp", [LARGE]))["items"]
    assert item["policy_version"] == 2  # type: ignore[typeddict-item]
    versions, num_changes = iter(range(3, 1000)), 1000
    with pytest.raises(NotReady, match="weights changed 3 times"):
        await service.score("rlp", [LARGE])


def test_parts_hold_every_thought_once() -> None:
    from services.reward.groups import GroupQuery
    from tests.services.reward.test_scoring import random_query

    query = random_query(1)
    query = replace(query, thoughts_G=query.thoughts_G * 5)
    for max_tokens, shares in product((1, 40, 100, 10_000), (True, False)):
        parts: list[GroupQuery] = query.parts(max_tokens, shares)
        assert tuple(t for part in parts for t in part.thoughts_G) == query.thoughts_G
        for part in parts:
            assert part.num_tokens(shares) <= max_tokens or len(part.thoughts_G) == 1
        if max_tokens == 10_000:
            assert parts == [query]
