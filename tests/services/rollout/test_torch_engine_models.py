"""Models that the torch engine refuses, as a whole or for the length of a task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from forethought.compute import consistency
from forethought.errors import InvalidInput
from forethought.types import Document, Position, Prompting, Sampling, Task
from services.rollout.torch_engine import TorchEngine
from tests import architectures, tiny

PROMPTING = Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,))
TRUNK = tuple(range(5, 45))
TASK = Task(
    0, 1, 0, 0, "rlp", "{}", Document("d", "s", TRUNK), (Position(9, TRUNK[9:10]),), PROMPTING,
    Sampling(2, 12, 1.0, (tiny.CLOSE_ID,)), 3,
)  # fmt: skip


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[TorchEngine]:
    made = TorchEngine(replica="rollout-t", device="cpu", max_batch_tokens=1 << 16)
    yield made
    await made.close()


async def test_a_model_without_an_exact_form_of_decoding_is_refused_and_the_old_one_serves(
    engine: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.load(tiny.manifest("policy"), tiny.build_model_directory(tmp_path / "llama"))
    mamba = architectures.build_directory(tmp_path / "mamba", "mamba")
    monkeypatch.setattr(consistency, "_decoded", lambda *_: torch.ones(9))
    with pytest.raises(InvalidInput, match=r"cannot sample from this model.*rollout\.engine=vllm"):
        await engine.load(tiny.manifest("policy", version=1, files="other"), mamba)
    (rollout,) = await engine.generate([TASK])
    assert rollout.error is None
    assert engine.serving == tiny.manifest("policy")


@pytest.mark.parametrize("name", ["nemotron_h", "recurrent_gemma", "rwkv"])
async def test_a_hybrid_or_recurrent_model_is_sampled(
    name: str, engine: TorchEngine, tmp_path: Path
) -> None:
    """Cache layers know ``reorder_cache``, not ``batch_select_indices``; some models have other caches."""
    directory = architectures.build_directory(tmp_path, name)
    await engine.load(tiny.manifest("policy"), directory)
    (rollout,) = await engine.generate([TASK])
    assert rollout.error is None
    assert [len(group) for group in rollout.thoughts_KG] == [2]


async def test_a_task_across_changing_rotary_frequencies_is_a_failed_rollout(
    engine: TorchEngine, tmp_path: Path
) -> None:
    """9 of context, 2 of markers, 12 of thought and the target are 24 tokens."""
    await engine.load(
        tiny.manifest("policy"), architectures.build_directory(tmp_path / "phi3", "phi3")
    )
    longer = replace(TASK, positions_K=(Position(10, TRUNK[10:11]),))
    assert engine.refusal(TASK) is None
    assert "change beyond 24" in (engine.refusal(longer) or "")
    fits, crosses = await engine.generate([TASK, longer])
    assert fits.error is None
    assert "rows of up to 25 tokens" in (crosses.error or "")
