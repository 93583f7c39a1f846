"""The torch engine's batches: a task over the budget in turns, others in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.types import Rollout
from services.rollout import torch_engine
from services.rollout.tasks import longest_branch
from services.rollout.torch_engine import TorchEngine
from tests import tiny
from tests.services.rollout.test_engine import SAMPLING, TASKS, ids_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"), seed=1)


async def engine_of(directory: Path, max_batch_tokens: int) -> TorchEngine:
    engine = TorchEngine(replica="r", device="cpu", max_batch_tokens=max_batch_tokens)
    await engine.load(tiny.manifest("policy", version=1), directory)
    return engine


@pytest.fixture
async def engine(directory: Path) -> AsyncIterator[TorchEngine]:
    two_rows = longest_branch(TASKS[0]) + SAMPLING.max_thought_tokens + 2
    engine = await engine_of(directory, two_rows)
    yield engine
    await engine.close()


class Draws:
    """Records the samples of every decode batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_samples: list[int] = []
        self._sample = torch_engine.sample
        monkeypatch.setattr(torch_engine, "sample", self)

    def __call__(self, model: Any, requests: Any, is_cancelled: Callable[[], bool]) -> Any:
        self.num_samples.append(sum(len(request.seeds_G) for request in requests))
        return self._sample(model, requests, is_cancelled)


async def test_a_task_over_the_budget_is_decoded_in_turns(
    engine: TorchEngine, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await engine_of(directory, 1 << 16)
    expected: list[Rollout] = await whole.generate(TASKS)
    await whole.close()
    draws = Draws(monkeypatch)
    found = await engine.generate(TASKS)
    assert ids_of(found) == ids_of(expected)
    assert max(draws.num_samples) < SAMPLING.group_size
    assert sum(draws.num_samples) == SAMPLING.group_size * 6


async def test_others_take_turns_with_a_large_task(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws(monkeypatch)
    small = replace(TASKS[1], sampling=replace(SAMPLING, group_size=1))
    large = asyncio.create_task(engine.generate([TASKS[0]]))
    await asyncio.sleep(0)
    await engine.generate([small])
    assert not large.done()
    await large
    assert draws.num_samples.index(1) <= 2
