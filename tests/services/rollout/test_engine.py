"""The contract of every rollout engine. A new engine joins by adding its factory to ``FACTORIES``.

All tests share one event loop, because a started vLLM belongs to one.

The reference is a plain transformers forward pass over one sequence at a time, without cache, padding
or batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from forethought.conformance import rollout_fault
from forethought.errors import InvalidInput, NotReady
from forethought.stops import Stops
from forethought.types import Document, Position, Prompting, Rollout, Sampling, Task, Thought
from services.rollout.engine import Engine
from services.rollout.torch_engine import TorchEngine
from tests import tiny, vllm_engines

G, BUDGET, TEMPERATURE = 6, 8, 0.8
PROMPTING = Prompting(head_ids=(7,), bridge_ids=(10, tiny.OPEN_ID), close_ids=(tiny.CLOSE_ID, 11))
# Many stop tokens: a random model would otherwise hardly ever stop.
SAMPLING = Sampling(G, BUDGET, TEMPERATURE, (tiny.CLOSE_ID, *range(0, tiny.NUM_BYTES, 9)))

EngineFactory = Callable[[bool], Engine]

pytestmark = pytest.mark.asyncio(loop_scope="session")


def torch_engine(deterministic: bool) -> Engine:
    return TorchEngine(
        replica="rollout-t", device="cpu", max_batch_tokens=1 << 16, deterministic=deterministic
    )


FACTORIES = [
    pytest.param("torch", id="torch"),
    pytest.param("vllm", id="vllm", marks=vllm_engines.MARKS),
]


@pytest.fixture(params=FACTORIES)
def make_engine(request: pytest.FixtureRequest) -> EngineFactory:
    """A factory of engines without weights; its argument: deterministic or not."""
    if request.param == "torch":
        return torch_engine
    pool: vllm_engines.VllmPool = request.getfixturevalue("vllm_pool")
    return lambda deterministic: vllm_engines.WarmEngine(pool, deterministic)


@pytest_asyncio.fixture(loop_scope="session")
async def engine(make_engine: EngineFactory) -> AsyncIterator[Engine]:
    """An engine without weights."""
    made = make_engine(False)
    yield made
    await made.close()


@pytest.fixture(scope="session", params=["gpt2", "llama"])  # all tests of one, then of the other
def kind(request: pytest.FixtureRequest) -> tiny.Kind:
    kind: tiny.Kind = request.param
    return kind


@pytest.fixture
def first(tmp_path: Path, kind: tiny.Kind) -> Path:
    """The model directory of version 1."""
    return tiny.build_model_directory(tmp_path / "first", kind, seed=1, head_dim=32)


@pytest.fixture
def second(tmp_path: Path, kind: tiny.Kind) -> Path:
    """Other weights of the same model."""
    return tiny.build_model_directory(tmp_path / "second", kind, seed=2, head_dim=32)


def make_task(
    task_id: int, seed: int = 3, indices: Sequence[int] = (4, 9), length: int = 14
) -> Task:
    trunk = tuple(20 + (7 * task_id + 3 * i) % 200 for i in range(length))
    positions = tuple(Position(i, trunk[i : i + 1]) for i in indices)
    return Task(
        task_id, 1, 0, 0, "rlp", "{}", Document(f"d{task_id}", "s", trunk), positions,
        PROMPTING, SAMPLING, seed,
    )  # fmt: skip


TASKS = [make_task(0), make_task(1, indices=(2,)), make_task(2, indices=(1, 5, 13), length=30)]


async def serve(engine: Engine, directory: Path, version: int = 1) -> None:
    await engine.load(tiny.manifest("policy", version=version), directory)


def thoughts_of(rollouts: Sequence[Rollout]) -> list[Thought]:
    assert all(rollout.error is None for rollout in rollouts)
    return [t for rollout in rollouts for group in rollout.thoughts_KG for t in group]


def ids_of(rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    return [thought.token_ids_L for thought in thoughts_of(rollouts)]


@torch.no_grad()
def plain_logprobs(model: Any, rollout: Rollout) -> list[list[float]]:
    """Of every thought's tokens at the sampling temperature, one plain pass per thought."""
    task, values = rollout.task, []
    for position, group in zip(task.positions_K, rollout.thoughts_KG, strict=True):
        context = task.document.token_ids_N[: position.index]
        prefix = task.prompting.head_ids + context + task.prompting.bridge_ids
        for thought in group:
            logits = model(torch.tensor([prefix + thought.token_ids_L])).logits[0]
            logprobs = torch.log_softmax(logits / task.sampling.temperature, dim=-1)
            places = enumerate(thought.token_ids_L, start=len(prefix) - 1)
            values.append([float(logprobs[place, token_id]) for place, token_id in places])
    return values


def largest_error(directory: Path, rollouts: Sequence[Rollout]) -> float:
    """Between the engine's log-probs and the plain ones of a model directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    differences = [
        abs(ours - plain)
        for rollout in rollouts
        for thought, logprobs in zip(
            thoughts_of([rollout]), plain_logprobs(model, rollout), strict=True
        )
        for ours, plain in zip(thought.behaviour_logprobs_L, logprobs, strict=True)
    ]
    assert len(differences) > 50
    return max(differences)


async def test_not_ready_before_the_first_weights(engine: Engine) -> None:
    assert engine.serving is None
    with pytest.raises(NotReady, match="no policy weights yet"):
        await engine.generate(TASKS)


async def test_logprobs_are_those_of_a_plain_computation(engine: Engine, first: Path) -> None:
    await serve(engine, first)
    rollouts = await engine.generate(TASKS)
    assert largest_error(first, rollouts) < 1e-4
    plain = replace(SAMPLING, temperature=1.0)
    wrong = [replace(r, task=replace(r.task, sampling=plain)) for r in rollouts]
    assert largest_error(first, wrong) > 1e-2, "the temperature shows"


async def test_every_task_is_answered_in_order_and_in_shape(engine: Engine, first: Path) -> None:
    await serve(engine, first)
    rollouts = await engine.generate(TASKS)
    assert [rollout.task for rollout in rollouts] == TASKS
    for rollout in rollouts:
        assert rollout.replica
        shape = [len(group) for group in rollout.thoughts_KG]
        assert shape == [G] * len(rollout.task.positions_K)
    assert await engine.generate([]) == []


async def test_the_seed_decides_and_the_batch_does_not(engine: Engine, first: Path) -> None:
    await serve(engine, first)
    together = await engine.generate(TASKS)
    assert ids_of(await engine.generate(TASKS)) == ids_of(together)
    alone = [(await engine.generate([task]))[0] for task in reversed(TASKS)]
    assert ids_of(alone[::-1]) == ids_of(together)
    for one, other in zip(thoughts_of(alone[::-1]), thoughts_of(together), strict=True):
        assert one.behaviour_logprobs_L == pytest.approx(other.behaviour_logprobs_L, abs=1e-4)
    others = await engine.generate([replace(task, seed=4) for task in TASKS])
    assert ids_of(others) != ids_of(together)
    assert len(set(ids_of(together[:1]))) > G, "samples of a task differ among each other"


@pytest.mark.parametrize(
    ("make_engine", "kind"),
    [
        ("torch", "gpt2"),
        ("torch", "llama"),
        # What makes vLLM deterministic knows no models, and each of these starts a vLLM.
        pytest.param("vllm", "llama", marks=vllm_engines.MARKS),
    ],
    indirect=True,
)
async def test_deterministic_mode_is_bit_for_bit_whatever_the_batch(
    make_engine: EngineFactory, first: Path
) -> None:
    engine = make_engine(True)
    await serve(engine, first)
    together = await engine.generate(TASKS)
    alone = [(await engine.generate([task]))[0] for task in TASKS]
    await engine.close()
    assert thoughts_of(alone) == thoughts_of(together)


async def test_a_stop_token_ends_a_thought_and_belongs_to_it(engine: Engine, first: Path) -> None:
    await serve(engine, first)
    thoughts = thoughts_of(await engine.generate(TASKS))
    stops = set(SAMPLING.stop_ids)
    for thought in thoughts:
        assert 1 <= len(thought.token_ids_L) == len(thought.behaviour_logprobs_L) <= BUDGET
        assert not stops & set(thought.token_ids_L[:-1])
        assert thought.closed == (thought.token_ids_L[-1] in stops)
        assert thought.closed or len(thought.token_ids_L) == BUDGET
    assert {thought.closed for thought in thoughts} == {True, False}


async def test_each_task_keeps_its_own_limits_in_a_batch(engine: Engine, first: Path) -> None:
    await serve(engine, first)
    short = replace(TASKS[0], sampling=Sampling(2, 1, 1.0, SAMPLING.stop_ids))
    endless = replace(TASKS[1], sampling=Sampling(3, 20, TEMPERATURE, ()))
    rollouts = await engine.generate([short, endless, TASKS[2]])
    assert [len(t.token_ids_L) for t in thoughts_of(rollouts[:1])] == [1] * 4
    assert [len(t.token_ids_L) for t in thoughts_of(rollouts[1:2])] == [20] * 3
    assert not any(t.closed for t in thoughts_of(rollouts[1:2]))
    assert largest_error(first, rollouts) < 1e-4


PREDICTING = replace(SAMPLING, prediction_tokens=4, prediction_stop_ids=tuple(range(100, 150)))


async def test_a_prediction_follows_the_stop_token(engine: Engine, first: Path) -> None:
    """At the same temperature, from the same policy, and only where the thought closed."""
    await serve(engine, first)
    plain = await engine.generate(TASKS)
    asked = [replace(task, sampling=PREDICTING) for task in TASKS]
    rollouts = await engine.generate(asked)
    assert [t.thought_ids for t in thoughts_of(rollouts)] == ids_of(plain)
    assert [t.closed for t in thoughts_of(rollouts)] == [t.closed for t in thoughts_of(plain)]
    ends = set(PREDICTING.prediction_stop_ids)
    for thought in thoughts_of(rollouts):
        predicted = thought.prediction_ids
        assert thought.thought_ids + predicted == thought.token_ids_L
        assert len(thought.behaviour_logprobs_L) == len(thought.token_ids_L)
        assert [(s.version, s.num_tokens) for s in thought.version_spans] == [
            (1, len(thought.token_ids_L))
        ]
        if not thought.closed:
            assert predicted == ()
            continue
        assert not ends & set(predicted[:-1])
        assert len(predicted) == 4 or predicted[-1] in ends
    lengths = {len(t.prediction_ids) for t in thoughts_of(rollouts)}
    assert {0, 4} < lengths, "some did not close, some ran to the budget, some ended early"
    assert largest_error(first, rollouts) < 1e-4
    assert ids_of(await engine.generate(asked)) == ids_of(rollouts)


async def test_a_stop_sequence_ends_a_thought_and_belongs_to_it(
    engine: Engine, first: Path
) -> None:
    """Where its tokens are sampled in a row, and nowhere else; then a prediction follows."""
    await serve(engine, first)
    many = Sampling(32, 12, TEMPERATURE, ())
    drawn = ids_of(await engine.generate([replace(task, sampling=many) for task in TASKS]))
    pairs, threes = {ids[3:5] for ids in drawn[::3]}, {ids[1:4] for ids in drawn[1::6]}
    stops = Stops(ids=drawn[2][5:6], sequences=tuple(sorted(pairs | threes)))
    sampling = replace(
        many, stop_ids=stops.ids, stop_sequences=stops.sequences, prediction_tokens=2
    )
    rollouts = await engine.generate([replace(task, sampling=sampling) for task in TASKS])
    thoughts = thoughts_of(rollouts)
    for thought in thoughts:
        ids = thought.thought_ids
        ends = [i for i in range(1, len(ids) + 1) if _ends_with_any(ids[:i], stops)]
        assert ends == ([len(ids)] if thought.closed else [])
        assert thought.closed or len(ids) == 12
        assert len(thought.prediction_ids) == (2 if thought.closed else 0)
        assert [s.num_tokens for s in thought.version_spans] == [len(thought.token_ids_L)]
    by_sequence = [t for t in thoughts if t.closed and t.thought_ids[-1] not in stops.ids]
    went_on = [t for t in thoughts if set(stops.last_ids) & set(t.thought_ids[:-1])]
    assert min(len(by_sequence), len(went_on), sum(not t.closed for t in thoughts)) > 5
    assert len({t.thought_ids for t in thoughts}) > len(thoughts) // 2
    assert largest_error(first, rollouts) < 1e-4
    assert [rollout_fault(rollout, tiny.VOCAB_SIZE, 1) for rollout in rollouts] == [None] * 3


def _ends_with_any(ids: tuple[int, ...], stops: Stops) -> bool:
    every = [(one,) for one in stops.ids] + list(stops.sequences)
    return any(ids[-len(one) :] == one for one in every)


async def test_predictions_of_one_group_differ(engine: Engine, first: Path) -> None:
    """And do not reuse the thought's random numbers."""
    await serve(engine, first)
    every = replace(SAMPLING, max_thought_tokens=1, stop_ids=tuple(range(tiny.VOCAB_SIZE)))
    task = replace(TASKS[1], sampling=replace(every, group_size=24, prediction_tokens=1))
    thoughts = thoughts_of(await engine.generate([task]))
    assert all(len(thought.token_ids_L) == 2 for thought in thoughts)
    assert len({thought.prediction_ids for thought in thoughts}) > 4


async def test_a_flip_changes_version_and_weights(
    engine: Engine, first: Path, second: Path
) -> None:
    await serve(engine, first)
    before = await engine.generate(TASKS)
    await serve(engine, second, version=2)
    assert engine.serving is not None
    assert engine.serving.order == (1, 2)
    after = await engine.generate(TASKS)
    for version, rollouts in ((1, before), (2, after)):
        for thought in thoughts_of(rollouts):
            spans = thought.version_spans
            assert sum(span.num_tokens for span in spans) == len(thought.token_ids_L)
            assert {span.version for span in spans} == {thought.newest_version} == {version}
    assert ids_of(after) != ids_of(before)
    assert largest_error(first, before) < 1e-4
    assert largest_error(second, after) < 1e-4
    assert largest_error(first, after) > 1e-1


async def test_weights_that_do_not_fit_are_refused_as_a_whole(
    engine: Engine, first: Path, second: Path, tmp_path: Path
) -> None:
    await serve(engine, first)
    served, before = engine.serving, await engine.generate(TASKS)
    parameters = AutoModelForCausalLM.from_pretrained(second).named_parameters()
    weights = {name: parameter.detach() for name, parameter in parameters}
    last = list(weights)[-1]
    misfits = [
        weights | {last: torch.zeros(3)},
        {name: tensor for name, tensor in weights.items() if name != last},
        weights | {"unknown": torch.zeros(1)},
        weights | {last: weights[last].bfloat16()},
    ]
    for version, misfit in enumerate(misfits, start=2):
        save_file(misfit, tmp_path / "model.safetensors")
        with pytest.raises(InvalidInput, match="do not fit"):
            await serve(engine, tmp_path, version)
    assert engine.serving == served
    assert await engine.generate(TASKS) == before


async def test_a_model_that_does_not_load_is_refused(
    engine: Engine, first: Path, tmp_path: Path
) -> None:
    await serve(engine, first)
    served = engine.serving
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(InvalidInput):
        await engine.load(tiny.manifest("policy", version=2, files="new"), tmp_path / "broken")
    assert engine.serving == served


def bad_tasks() -> dict[str, Task]:
    """Tasks that cannot be served, and the expected error of each."""
    task = make_task(5)
    too_long = make_task(5, indices=(tiny.MAX_LENGTH_TOKENS - 5,), length=tiny.MAX_LENGTH_TOKENS)
    foreign = replace(task.document, token_ids_N=(*task.document.token_ids_N[:-1], 999))
    return {
        "tokens": too_long,
        "999": replace(task, document=foreign),
        "998": replace(task, prompting=replace(PROMPTING, head_ids=(998,))),
        "997": replace(task, prompting=replace(PROMPTING, bridge_ids=(997,))),
        "no position": replace(task, positions_K=()),
        "position": replace(task, positions_K=(Position(40, (5,)),)),
    }


@pytest.mark.parametrize("says", sorted(bad_tasks()))
async def test_a_bad_task_does_not_fail_the_others(engine: Engine, first: Path, says: str) -> None:
    await serve(engine, first)
    expected = ids_of(await engine.generate(TASKS))
    rollouts = await engine.generate([TASKS[0], bad_tasks()[says], *TASKS[1:]])
    bad = rollouts.pop(1)
    assert bad.error is not None
    assert says in bad.error
    assert bad.thoughts_KG == ()
    assert bad.task.task_id == 5
    assert ids_of(rollouts) == expected


async def test_only_bad_tasks(engine: Engine, first: Path) -> None:
    await serve(engine, first)
    rollouts = await engine.generate(list(bad_tasks().values()))
    assert all(rollout.error for rollout in rollouts)


@pytest.mark.parametrize("sampling", [SAMPLING, PREDICTING], ids=["thoughts", "predictions"])
async def test_thoughts_do_not_see_what_follows(
    engine: Engine, first: Path, sampling: Sampling
) -> None:
    """Targets and all after them permuted: no thought changes. One context token changed: some do."""
    await serve(engine, first)
    task = replace(make_task(3, indices=(6,), length=14), sampling=sampling)
    trunk = task.document.token_ids_N
    permuted = trunk[:6] + trunk[:5:-1]
    assert permuted != trunk
    changed = (*trunk[:5], 99, *trunk[6:])

    async def thoughts(token_ids: tuple[int, ...]) -> list[Thought]:
        document = replace(task.document, token_ids_N=token_ids)
        position = Position(6, token_ids[6:7])
        given = replace(task, document=document, positions_K=(position,))
        drawn = thoughts_of(await engine.generate([given]))
        return [replace(thought, target_logprobs_H=()) for thought in drawn]  # they do see it

    assert await thoughts(permuted) == await thoughts(trunk)
    assert await thoughts(changed) != await thoughts(trunk)


@pytest.mark.parametrize("kind", ["gpt2"], indirect=True)
async def test_other_model_files_replace_the_model(
    engine: Engine, first: Path, tmp_path: Path, kind: tiny.Kind
) -> None:
    """The last test of the first kind: its engine then serves the tests of the other kind."""
    await serve(engine, first)
    other_kind: tiny.Kind = "gpt2" if kind == "llama" else "llama"
    other = tiny.build_model_directory(tmp_path / "other", other_kind, head_dim=32)
    await engine.load(tiny.manifest("policy", version=2, files="others"), other)
    assert largest_error(other, await engine.generate(TASKS)) < 1e-4
