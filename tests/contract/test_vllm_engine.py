"""What only an engine that changes its policy inside a running request has to show.

The reference is that of ``test_engine``: one plain transformers pass over each whole sequence.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import tiny
import torch
import vllm_engines
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forethought.errors import InvalidInput
from forethought.types import Document, Position, Prompting, Rollout, Sampling, Task, Thought
from services.rollout import vllm_build
from services.rollout.vllm_engine import VllmEngine

pytestmark = [pytest.mark.asyncio(loop_scope="session"), *vllm_engines.MARKS]

PROMPTING = Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,))
LENGTH_TOKENS, BUDGET, TEMPERATURE = 40, 50, 0.8
ENDLESS = Sampling(4, BUDGET, TEMPERATURE, ())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two model directories that differ in weights alone."""
    root = tmp_path_factory.mktemp("weights")
    return [
        tiny.build_model_directory(root / str(seed), "llama", seed=seed, head_dim=32)
        for seed in (1, 2)
    ]


@pytest.fixture(scope="module")
def models(weights: list[Path]) -> list[Any]:
    return [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in weights
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=[False, True])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[VllmEngine]:
    """Recomputes the cache of running thoughts, or keeps it."""
    made = vllm_engines.new_engine(keep_kv=request.param)
    yield made
    await made.close()


def task(task_id: int, sampling: Sampling = ENDLESS, epoch: int = 1) -> Task:
    trunk = tuple(20 + (7 * task_id + 3 * i) % 200 for i in range(LENGTH_TOKENS))
    document = Document(f"d{task_id}", "s", trunk)
    positions = (Position(LENGTH_TOKENS - 1, trunk[-1:]),)
    return Task(task_id, epoch, 0, 0, "rlp", "{}", document, positions, PROMPTING, sampling, 3)


async def serve(engine: VllmEngine, path: Path, version: int, epoch: int = 1) -> None:
    await engine.load(tiny.manifest("policy", epoch=epoch, version=version), path)


def thoughts_of(rollouts: Sequence[Rollout]) -> list[Thought]:
    assert [rollout.error for rollout in rollouts] == [None] * len(rollouts)
    return [t for rollout in rollouts for group in rollout.thoughts_KG for t in group]


@torch.no_grad()
def plain_logprobs(model: Any, of: Task, thought: Thought) -> list[float]:
    """Of a thought's tokens after the (only) position of a task."""
    prefix = of.document.token_ids_N[: of.positions_K[0].index] + PROMPTING.bridge_ids
    logits = model(torch.tensor([prefix + thought.token_ids_L])).logits[0, len(prefix) - 1 : -1]
    logprobs = torch.log_softmax(logits / of.sampling.temperature, dim=-1)
    chosen: list[float] = logprobs.gather(1, torch.tensor(thought.token_ids_L)[:, None])[
        :, 0
    ].tolist()
    return chosen


def errors(rollouts: Sequence[Rollout], model: Any, version: int) -> list[float]:
    """Of the tokens labelled with ``version``, against a model that may or may not be it."""
    found = []
    for rollout in rollouts:
        for thought in thoughts_of([rollout]):
            labels = [s.version for s in thought.version_spans for _ in range(s.num_tokens)]
            assert len(labels) == len(thought.token_ids_L)
            plain = plain_logprobs(model, rollout.task, thought)
            pairs = zip(thought.behaviour_logprobs_L, plain, labels, strict=True)
            found += [abs(ours - ref) for ours, ref, label in pairs if label == version]
    return found


async def started(engine: VllmEngine, tokens: int) -> None:
    """Return once thoughts of this length were sampled under the engine's present load."""
    probe = Sampling(1, tokens, TEMPERATURE, ())
    await engine.generate([task(999, probe)])


async def test_weights_change_inside_running_thoughts(
    engine: VllmEngine, weights: list[Path], models: list[Any]
) -> None:
    await serve(engine, weights[0], 1)
    running = asyncio.create_task(engine.generate([task(i) for i in range(4)]))  # 16 thoughts
    await started(engine, 8)
    await serve(engine, weights[1], 2)
    assert not running.done(), "the change fell inside the thoughts"
    rollouts = await running
    thoughts = thoughts_of(rollouts)
    assert len(thoughts) == 16
    assert all(len(t.token_ids_L) == BUDGET for t in thoughts)
    assert all([s.version for s in t.version_spans] == [1, 2] for t in thoughts)
    assert max(errors(rollouts, models[0], 1)) < 1e-4
    assert min(len(errors(rollouts, m, v)) for v, m in enumerate(models, start=1)) > 16
    after = errors(rollouts, models[1], 2)
    if engine._keep_kv:
        assert sum(after) / len(after) > 1e-2, "the stale cache shows, as configured"
    else:
        assert max(after) < 1e-4
    wrong = errors(rollouts, models[0], 2)
    assert sum(wrong) / len(wrong) > 1e-1, "the boundary is where the spans say"


async def test_a_prompt_cached_under_old_weights_is_not_reused(
    engine: VllmEngine, weights: list[Path], models: list[Any]
) -> None:
    version = engine.serving.version if engine.serving else 0
    short = task(50, Sampling(4, 6, TEMPERATURE, ()))
    for offset in (1, 2, 3, 4):
        which = offset % 2
        await serve(engine, weights[which], version + offset)
        rollouts = await engine.generate([short]) + await engine.generate([short])
        assert max(errors(rollouts, models[which], version + offset)) < 1e-4
        assert min(errors(rollouts, models[1 - which], version + offset)) >= 0
        assert max(errors(rollouts, models[1 - which], version + offset)) > 1e-1


async def test_versions_restart_under_a_new_epoch(
    engine: VllmEngine, weights: list[Path], models: list[Any]
) -> None:
    short = task(51, Sampling(4, 6, TEMPERATURE, ()), epoch=7)
    await serve(engine, weights[0], 1, epoch=7)
    first = await engine.generate([short])
    await serve(engine, weights[1], 1, epoch=8)
    again = await engine.generate([replace(short, epoch=8)])
    assert max(errors(first, models[0], 1)) < 1e-4
    assert max(errors(again, models[1], 1)) < 1e-4
    await serve(engine, weights[0], 0, epoch=1)


@pytest.mark.parametrize("damage", ["cut short", "not safetensors", "foreign", "missing"])
async def test_a_bad_snapshot_is_refused_while_thoughts_run(
    engine: VllmEngine, weights: list[Path], models: list[Any], tmp_path: Path, damage: str
) -> None:
    await serve(engine, weights[0], 1)
    file = weights[0] / "model.safetensors"
    bad = tmp_path / "model.safetensors"
    if damage == "cut short":
        bad.write_bytes(file.read_bytes()[:-1000])
    elif damage == "not safetensors":
        bad.write_bytes(b"x" * 5000)
    elif damage == "foreign":
        save_file(
            {name: w.repeat(2, *[1] * (w.dim() - 1)) for name, w in load_file(file).items()}, bad
        )
    running = asyncio.create_task(engine.generate([task(i) for i in range(4)]))
    await started(engine, 4)
    with pytest.raises(InvalidInput):
        await serve(engine, tmp_path, 2)
    assert engine.serving is not None
    assert engine.serving.version == 1
    rollouts = await running
    assert {s.version for t in thoughts_of(rollouts) for s in t.version_spans} == {1}
    assert max(errors(rollouts, models[0], 1)) < 1e-4


async def test_a_hundred_changes_leak_no_memory(engine: VllmEngine, weights: list[Path]) -> None:
    few = [task(i, Sampling(4, 6, TEMPERATURE, ())) for i in range(2)]
    sizes: list[list[int]] = []
    for version in range(1, 131):
        await serve(engine, weights[version % 2], version)
        await engine.generate(few)
        if version in (30, 130):
            sizes.append(resident_bytes())
    before, after = map(sum, sizes)
    assert after - before < 16 << 20, f"resident bytes before and after 100 changes: {sizes}"


def resident_bytes() -> list[int]:
    """Of this process and all it started."""
    gc.collect()
    me = psutil.Process()
    return [p.memory_info().rss for p in (me, *me.children(recursive=True))]


async def test_a_lost_vllm_is_told_and_serves_nothing(weights: list[Path]) -> None:
    told = asyncio.Event()
    engine = vllm_engines.new_engine(on_lost=told.set)
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    await serve(engine, weights[0], 1)
    for process in psutil.Process().children(recursive=True):
        if process.pid not in before and "resource_tracker" not in " ".join(process.cmdline()):
            process.kill()
    with pytest.raises(RuntimeError, match="vLLM"):
        await engine.generate([task(0)])
    assert told.is_set()
    assert engine.serving is None
    await engine.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_num_seq", "did you mean 'max_num_seqs'"),
        ("trust_remote_code", "decided"),
        ("xyz", "no engine"),
    ],
)
async def test_engine_arguments_are_checked(name: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        vllm_build.engine_arguments({name: 1}, deterministic=False)


async def test_engine_arguments_are_passed_through() -> None:
    arguments = vllm_build.engine_arguments(
        {"max_num_seqs": 7, "quantization": "fp8"}, deterministic=False
    )
    assert (arguments["max_num_seqs"], arguments["quantization"]) == (7, "fp8")
