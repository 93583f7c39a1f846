"""The torch engine alone: what a cancelled call leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.compute.decode_batches import num_tokens
from forethought.compute.model import load_language_model
from forethought.compute.sampling import SampleRequest, sample
from forethought.types import Document, Position, Prompting, Sampling, Task
from services.rollout import torch_engine
from services.rollout.torch_engine import TorchEngine
from tests import tiny

TASK = Task(
    0, 1, 0, 0, "rlp", "{}", Document("d", "s", (20, 21, 22)), (Position(2, (22,)),),
    Prompting((), (tiny.OPEN_ID,), (tiny.CLOSE_ID,)), Sampling(2, 4), seed=1,
)  # fmt: skip


async def test_a_cancelled_call_frees_the_compute_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = threading.Event()

    def sample_for_ever(
        model: Any, requests: Sequence[SampleRequest], is_cancelled: Callable[[], bool]
    ) -> None:
        sampling.set()
        while not is_cancelled():
            pass
        raise CancelledError

    monkeypatch.setattr(torch_engine, "sample", sample_for_ever)
    engine = TorchEngine(replica="rollout-t", device="cpu", max_batch_tokens=1 << 16)
    await engine.load(tiny.manifest("policy", version=1), tiny.build_model_directory(tmp_path))
    calling = asyncio.create_task(engine.generate([TASK]))
    await asyncio.to_thread(sampling.wait)
    calling.cancel()
    await asyncio.wait((calling,))
    assert calling.cancelled()
    await engine.close()


def test_sampling_stops_between_two_tokens(tmp_path: Path) -> None:
    model = load_language_model(tiny.build_model_directory(tmp_path), "float32", "cpu").model
    request = SampleRequest((20, 21), (1, 2), max_tokens=50, temperature=1.0, stop_ids=())
    answers = iter([False, False, True])
    with pytest.raises(CancelledError):
        sample(model, [request], lambda: next(answers))


@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_task_larger_than_a_decode_batch_is_decoded_in_parts(
    tmp_path: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thoughts are those of one batch: each has a random generator of its own."""
    positions_K = (Position(1, (21,)), Position(2, (22,)))
    task = replace(TASK, positions_K=positions_K, sampling=Sampling(8, 4))
    directory = tiny.build_model_directory(tmp_path)
    sizes: list[int] = []

    def measured(model: Any, requests: Sequence[SampleRequest], *rest: Any) -> Any:
        sizes.append(num_tokens(requests, "trees"))
        return sample(model, requests, *rest)

    monkeypatch.setattr(torch_engine, "sample", measured)
    rollouts = []
    for max_batch_tokens in (1 << 16, 40):
        sizes.clear()
        engine = TorchEngine(
            replica="r",
            device="cpu",
            max_batch_tokens=max_batch_tokens,
            deterministic=deterministic,
        )
        await engine.load(tiny.manifest("policy"), directory)
        rollouts += await engine.generate([task])
        await engine.close()
        assert max(sizes) <= max_batch_tokens
    ids = [[[t.token_ids_L for t in group] for group in r.thoughts_KG] for r in rollouts]
    assert ids[0] == ids[1]
    assert [len(group) for group in ids[1]] == [8, 8]
