"""Tests of in-flight weight updates, which only the vLLM engine has.

The reference is that of ``test_engine``: one plain transformers pass over each whole sequence.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forethought.clients import AsyncRolloutClient, Generated, Retries
from forethought.errors import EngineLost, InvalidInput
from forethought.types import Document, Position, Prompting, Rollout, Sampling, Task, Thought
from services.rollout import vllm_build
from services.rollout.engine import Engine
from services.rollout.grpc_server import RolloutServicer
from tests import tiny, vllm_engines
from tests.endpoints import grpc_endpoint
from trainer.batch.thought_tree import Branch, ThoughtTree
from trainer.learner.batching import micro_batches
from trainer.learner.loss import policy_logprobs

pytestmark = [pytest.mark.asyncio(loop_scope="session"), *vllm_engines.MARKS]

PROMPTING = Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,))
LENGTH_TOKENS, BUDGET, TEMPERATURE = 40, 50, 0.8
ENDLESS = Sampling(4, BUDGET, TEMPERATURE, ())
PREFIX = (7, 20, 30, 40)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two model directories that differ only in their weights."""
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
async def engine(
    request: pytest.FixtureRequest, vllm_pool: vllm_engines.VllmPool
) -> AsyncIterator[vllm_engines.WarmEngine]:
    """Recomputes the cache of running thoughts, or keeps it."""
    made = vllm_engines.WarmEngine(vllm_pool, keep_kv=request.param)
    yield made
    await made.close()


def task(task_id: int, sampling: Sampling = ENDLESS, epoch: int = 1) -> Task:
    trunk = tuple(20 + (7 * task_id + 3 * i) % 200 for i in range(LENGTH_TOKENS))
    document = Document(f"d{task_id}", "s", trunk)
    positions = (Position(LENGTH_TOKENS - 1, trunk[-1:]),)
    return Task(task_id, epoch, 0, 0, "rlp", "{}", document, positions, PROMPTING, sampling, 3)


async def serve(engine: Engine, path: Path, version: int, epoch: int = 1) -> None:
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


async def started(engine: Engine, tokens: int) -> None:
    """Return once thoughts of this length were sampled under the engine's current load."""
    probe = Sampling(1, tokens, TEMPERATURE, ())
    await engine.generate([task(999, probe)])


async def test_weights_change_inside_running_thoughts(
    engine: vllm_engines.WarmEngine, weights: list[Path], models: list[Any]
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
    if engine.keep_kv:
        assert sum(after) / len(after) > 1e-2, "the stale cache shows, as configured"
    else:
        assert max(after) < 1e-4
    wrong = errors(rollouts, models[0], 2)
    assert sum(wrong) / len(wrong) > 1e-1, "the boundary is where the spans say"


async def test_a_prompt_cached_under_old_weights_is_not_reused(
    engine: vllm_engines.WarmEngine, weights: list[Path], models: list[Any]
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
    engine: vllm_engines.WarmEngine, weights: list[Path], models: list[Any]
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
    engine: vllm_engines.WarmEngine,
    weights: list[Path],
    models: list[Any],
    tmp_path: Path,
    damage: str,
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


@dataclass(frozen=True)
class Footprint:
    """A process's resources: unshared memory, open files, mapped shared memory."""

    own_bytes: int
    num_files: int
    num_shared: int


def footprints() -> dict[int, Footprint]:
    """Of this process and all its descendants, by process id."""
    gc.collect()
    me = psutil.Process()
    return {
        p.pid: Footprint(
            p.memory_full_info().uss,
            p.num_fds(),
            sum(m.path.startswith("/dev/shm") for m in p.memory_maps(grouped=False)),
        )
        for p in (me, *me.children(recursive=True))
    }


async def test_a_hundred_changes_leak_nothing(
    engine: vllm_engines.WarmEngine, weights: list[Path]
) -> None:
    """A hundred changes that each kept their snapshot of 200 kB would take 20 MB; they may take 4 MiB.

    Without a leak they take 20 kB, or once the few MiB by which an allocator grows. That holds after
    every block of the KV cache was written to, and for shapes of batches that were seen before, because
    vLLM keeps what it prepares for a shape: hence a warm-up with many thoughts, then one at a time.
    """
    one = [task(0, Sampling(1, 6, TEMPERATURE, ()))]
    version = engine.serving.version if engine.serving else 0

    async def change(num_times: int) -> None:
        nonlocal version
        for _ in range(num_times):
            version += 1
            await serve(engine, weights[version % 2], version)
            await engine.generate(one)

    await change(1)
    for _ in range(2):
        await engine.generate([task(i) for i in range(16)])
    await change(20)
    before = footprints()
    await change(100)
    for pid, after in footprints().items():
        assert after.own_bytes - before[pid].own_bytes < 8 << 20, f"{before} -> {after}"
        assert after.num_files <= before[pid].num_files
        assert after.num_shared <= before[pid].num_shared


async def test_generate_over_grpc_gives_what_the_learner_computes(
    engine: vllm_engines.WarmEngine, weights: list[Path], models: list[Any]
) -> None:
    await serve(engine, weights[0], 1)
    sampling = Sampling(5, 12, TEMPERATURE, (tiny.CLOSE_ID, *range(0, tiny.NUM_BYTES, 9)))
    async with (
        grpc_endpoint(RolloutServicer(engine, "rollout-v")) as address,
        AsyncRolloutClient(f"grpc://{address}", retries=Retries(max_attempts=1)) as client,
    ):
        drawn, again = [
            await client.generate(sampling, prefix_ids=PREFIX, seed=3) for _ in range(2)
        ]
        nearly_greedy = replace(sampling, temperature=0.01)
        greedy = await client.generate(nearly_greedy, prefix_ids=PREFIX, seed=4)
        with pytest.raises(InvalidInput, match="token id 999"):
            await client.generate(sampling, prefix_ids=(999,))
    assert drawn == again
    assert len({thought.token_ids_L for thought in drawn.thoughts_G}) == 5
    assert {thought.closed for thought in drawn.thoughts_G} == {True, False}
    assert learner_errors(models[0], drawn, TEMPERATURE) < 1e-4
    assert learner_errors(models[1], drawn, TEMPERATURE) > 1e-1
    [likeliest] = {thought.token_ids_L for thought in greedy.thoughts_G}
    assert likeliest == argmax_tokens(models[0], len(likeliest))


def learner_errors(model: Any, generated: Generated, temperature: float) -> float:
    """The largest difference to the log-probs that the learner computes for its loss."""
    branches = [
        Branch(len(PREFIX), t.token_ids_L, ones := (1.0,) * len(t.token_ids_L), ones,
               t.behaviour_logprobs_L, temperature)
        for t in generated.thoughts_G
    ]  # fmt: skip
    trees = [ThoughtTree((), PREFIX, branches=tuple(branches))]
    [batch] = micro_batches(trees, 1 << 16, torch.device("cpu"))
    with torch.no_grad():
        differences = policy_logprobs(model, batch) - batch.behaviour_logprobs_M
    return float((differences * batch.weights_M).abs().max())


@torch.no_grad()
def argmax_tokens(model: Any, num_tokens: int) -> tuple[int, ...]:
    """The likeliest token after ``PREFIX``, then after that one, and so on."""
    token_ids = list(PREFIX)
    for _ in range(num_tokens):
        token_ids.append(int(model(torch.tensor([token_ids])).logits[0, -1].argmax()))
    return tuple(token_ids[len(PREFIX) :])


async def test_a_vllm_that_stands_still_notes_no_progress(
    vllm_pool: vllm_engines.VllmPool, weights: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, noted = vllm_engines.WarmEngine(vllm_pool), asyncio.Event()
    await serve(engine, weights[0], 1)
    monkeypatch.setattr(engine._engine, "_on_progress", noted.set)
    cores = [p for p in psutil.Process().children(recursive=True) if is_core(p)]
    for core in cores:
        core.suspend()
    try:
        sampling = asyncio.create_task(engine.generate([task(0)]))
        await asyncio.sleep(2.5)
        assert not noted.is_set()
    finally:
        for core in cores:
            core.resume()
    [rollout] = await sampling
    assert rollout.error is None
    assert noted.is_set()


async def test_a_lost_vllm_is_reported_and_serves_nothing(
    vllm_pool: vllm_engines.VllmPool, weights: list[Path]
) -> None:
    """The last test of the pool's engine, which it kills."""
    engine = vllm_engines.WarmEngine(vllm_pool)
    await serve(engine, weights[0], 1)
    assert not vllm_pool.lost.is_set()
    cores = [p for p in psutil.Process().children(recursive=True) if is_core(p)]
    assert cores
    for core in cores:
        core.kill()
    with pytest.raises(EngineLost, match="core process died"):
        await engine.generate([task(0)])
    assert vllm_pool.lost.is_set()
    assert engine.serving is None
    await vllm_pool.close()


def is_core(process: psutil.Process) -> bool:
    command = " ".join(process.cmdline())
    return "VLLM::" in command or "multiprocessing.spawn" in command


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_num_seq", "did you mean 'max_num_seqs'"),
        ("trust_remote_code", "set by the rollout service"),
        ("xyz", "not an engine argument"),
    ],
)
async def test_engine_arguments_are_checked(name: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        vllm_build.engine_arguments({name: 1}, deterministic=False)


@pytest.mark.parametrize("option", [{"max_num_seqs": 2}, {"enable_prefix_caching": True}])
async def test_what_deterministic_mode_needs_cannot_be_overridden(option: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidInput, match=rf"rollout.vllm.{next(iter(option))} is .*deterministic"
    ):
        vllm_build.engine_arguments(option, deterministic=True)


async def test_engine_arguments_are_passed_through() -> None:
    arguments = vllm_build.engine_arguments(
        {"max_num_seqs": 7, "quantization": "fp8"}, deterministic=False
    )
    assert (arguments["max_num_seqs"], arguments["quantization"]) == (7, "fp8")


@pytest.mark.parametrize("deterministic", [False, True])
async def test_deterministic_is_one_thought_at_a_time_without_prefix_cache(
    deterministic: bool,
) -> None:
    """Tiny models on a CPU do not show it: their bits are the same in any batch."""
    arguments = vllm_build.engine_arguments({}, deterministic=deterministic)
    assert arguments["enable_prefix_caching"] is not deterministic
    assert vllm_build.engine_arguments({"max_num_seqs": 1}, deterministic=True)
    assert (arguments.get("max_num_seqs") == 1) is deterministic
