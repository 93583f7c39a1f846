"""The torch engine alone: what a cancelled call leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

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
