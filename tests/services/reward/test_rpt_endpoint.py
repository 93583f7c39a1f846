"""RPT through the reward service: clients send whole responses and get the learner's rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought import objectives
from services.reward.limits import Limits
from services.reward.replies import ItemScores
from services.reward.scoring import Scorer
from services.reward.service import RewardService
from tests import tiny


@pytest.fixture
def service(tmp_path: Path) -> RewardService:
    policy = tiny.serve(tiny.build_model_directory(tmp_path / "policy"), "policy")
    plain = objectives.load("rpt", {"prompt": "plain", "reward": "dense", "prediction_tokens": 3})
    loaded = {
        "rpt": objectives.load("rpt", {"prompt": "plain", "prediction_tokens": 9}),
        "d": plain,
    }
    return RewardService(
        Scorer(policy, None, 4096, objectives=loaded),
        loaded,
        think_open=tiny.THINK_OPEN,
        think_close=tiny.THINK_CLOSE,
        limits=Limits(4096),
    )


async def scored(service: RewardService, objective: str, thoughts: list[str]) -> ItemScores:
    item = {"context": "one", "target": " two", "thoughts": thoughts}
    answer = (await service.score(objective, [item]))["items"][0]
    assert "error" not in answer, answer
    return answer


async def test_what_follows_the_close_is_graded(service: RewardService) -> None:
    answer = await scored(
        service, "rpt", ["hm</think> tw", "hm</think>x", "hm", "</think> two", "h</think>"]
    )
    assert answer["rewards"] == (1.0, 0.0, 0.0, 1.0, 0.0)
    assert len(answer["advantages"]) == 5


async def test_likelihoods_are_those_up_to_the_close(service: RewardService) -> None:
    answer = await scored(service, "rpt", ["hm</think> tw", "hm</think>"])
    first, second = answer["policy_logprobs"]
    assert first == second


async def test_a_wrong_one_earns_its_probability(service: RewardService) -> None:
    answer = await scored(service, "d", ["hm</think> tw", "hm</think>x"])
    right, wrong = answer["rewards"]
    assert right == 1.0
    assert 0.0 < wrong < 1.0
