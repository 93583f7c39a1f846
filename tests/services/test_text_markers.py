"""Think markers of several tokens through sampling, scoring, grading and learning, by both engines.

The model is random, so the close marker of most tests is what it samples most often; the reference is a
plain transformers pass over each whole sequence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from forethought import estimators, objectives
from forethought.compute.forms import forms_of
from forethought.compute.model import LanguageModel, Markers, find_markers, load_language_model
from forethought.compute.prompting import prompting_of
from forethought.conformance import rollout_fault
from forethought.types import Document, Position, Prompting, Rollout, Sampling, Task
from services.reward.scoring import Scorer
from services.reward.service import Limits, RewardService
from services.rollout.engine import Engine
from services.rollout.torch_engine import TorchEngine
from tests import tiny, vllm_engines
from tests.families import TEXTS, build_directory
from trainer.batch.builder import BatchBuilder
from trainer.learner.batching import micro_batches
from trainer.learner.loss import policy_logprobs

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPEN, CLOSE = "\n\nThinking:", "\n\nAnswer:"
G, BUDGET = 24, 12
PROMPTS: dict[str, dict[str, Any]] = {
    "rlp": {"prompt": "plain"},
    "rlp v2": {"prompt": "v2"},
    "rpt": {"prompt": "plain"},
    "rpt boxed": {"prompt": "v0", "prediction_tokens": 6},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_directory(tmp_path_factory.mktemp("llama3"), "llama3", head_dim=32)


@pytest.fixture(scope="module")
def language_model(directory: Path) -> LanguageModel:
    return load_language_model(directory, "float32", "cpu")


@pytest.fixture(params=["torch", pytest.param("vllm", marks=vllm_engines.MARKS)])
def unloaded(request: pytest.FixtureRequest) -> Engine:
    if request.param == "torch":
        return TorchEngine(replica="t", device="cpu", max_batch_tokens=1 << 16)
    return vllm_engines.WarmEngine(request.getfixturevalue("vllm_pool"))


@pytest_asyncio.fixture(loop_scope="session")
async def engine(unloaded: Engine, directory: Path) -> AsyncIterator[Engine]:
    await unloaded.load(tiny.manifest("policy"), directory)
    yield unloaded
    await unloaded.close()


def task_of(name: str, model: LanguageModel, close_ids: tuple[int, ...]) -> Task:
    """Thoughts at two positions, between an open marker of several tokens and ``close_ids``."""
    objective = objectives.load(name.partition(" ")[0], PROMPTS[name])
    open_ids = find_markers(model.tokenizer, OPEN, CLOSE).open_ids
    markers = Markers(open_ids, close_ids)
    ids = tuple(model.tokenizer(TEXTS[5], add_special_tokens=False)["input_ids"])
    return Task(
        3, 1, 0, 0, name.partition(" ")[0],
        objective.config.model_dump_json(), Document("d", "s", ids),
        tuple(Position(i, ids[i : i + 2]) for i in (9, 14)),
        prompting_of(objective, model.tokenizer, markers),
        Sampling(
            G, BUDGET, 0.8, markers.stop_ids, objective.prediction_tokens,
            stop_sequences=markers.stop_sequences,
        ),
        seed=5, models=tuple(sorted(objective.models)),
    )  # fmt: skip


async def sampled(name: str, engine: Engine, model: LanguageModel) -> Rollout:
    """Thoughts that end at the two tokens which the policy most often samples one after the other."""
    free = task_of(name, model, find_markers(model.tokenizer, OPEN, CLOSE).close_ids)
    free = replace(free, sampling=replace(free.sampling, stop_sequences=()))
    (rollout,) = await engine.generate([free])
    assert rollout.error is None
    drawn = [t.token_ids_L for thoughts_G in rollout.thoughts_KG for t in thoughts_G]
    counts = Counter(pair for ids in drawn for pair in pairwise(ids[1:]) if pair[0] != pair[1])
    (rollout,) = await engine.generate([task_of(name, model, counts.most_common(1)[0][0])])
    assert rollout_fault(rollout, model.vocabulary, 0) is None
    return rollout


@torch.no_grad()
def logprobs(
    model: Any, prefix: tuple[int, ...], ids: tuple[int, ...], temperature: float = 1.0
) -> list[float]:
    """log p of ``ids`` after ``prefix``, without any token's mass removed."""
    logits = model(torch.tensor([prefix + ids])).logits[0, len(prefix) - 1 : -1].float()
    chosen = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    found: list[float] = chosen.tolist()
    return found


@pytest.mark.parametrize("name", PROMPTS)
async def test_thoughts_end_at_the_sequence_and_are_what_the_learner_computes(
    name: str, engine: Engine, directory: Path, language_model: LanguageModel
) -> None:
    rollout = await sampled(name, engine, language_model)
    task, prompting = rollout.task, rollout.task.prompting
    close_ids, everything = prompting.close_ids, [t for g in rollout.thoughts_KG for t in g]
    assert (prompting.open_id, len(close_ids)) == (None, 2)
    for thought in everything:
        ids = thought.thought_ids
        places = [i for i in range(1, len(ids)) if ids[i - 1 : i + 1] == close_ids]
        assert places == ([len(ids) - 1] if thought.closed else [])
        assert len(thought.prediction_ids) == thought.closed * task.sampling.prediction_tokens
    assert {thought.closed for thought in everything} == {True, False}
    for position, thoughts_G in zip(task.positions_K, rollout.thoughts_KG, strict=True):
        prefix = prompting.thinking_prefix(task.document.token_ids_N[: position.index])
        for thought in thoughts_G:
            plain = logprobs(language_model.model, prefix, thought.token_ids_L, 0.8)
            assert thought.behaviour_logprobs_L == pytest.approx(plain, abs=1e-4)

    scorer = Scorer(tiny.serve(directory, "policy"), None, 4096, objectives={"rlp", "rpt"})
    (scored,) = scorer.score_rollouts([rollout])
    assert scored.failure is None
    varied = tuple(tuple(math.sin(g) for g in range(G)) for _ in task.positions_K)
    objective = objectives.load(task.objective, PROMPTS[name])
    builder = BatchBuilder(objective, estimators.load(objective.estimator))
    trees = builder.build([replace(scored, rewards_KG=varied)]).trees
    for batch in micro_batches(trees, 4096, torch.device("cpu"), forms_of(language_model.model)):
        ours = policy_logprobs(language_model.model, batch).detach()
        trained = batch.weights_M != 0
        difference = (ours - batch.behaviour_logprobs_M).abs()[trained]
        assert float(difference.max()) < 1e-4
        num_tokens = sum(len(thought.token_ids_L) for thought in everything)
        assert int(trained.sum()) == num_tokens  # the sampled close too; a forced one has no weight


@pytest.mark.parametrize("hands_on", [True, False])
async def test_the_scorer_equals_a_plain_computation(
    hands_on: bool, engine: Engine, directory: Path, language_model: LanguageModel
) -> None:
    """A closed thought ends with the marker, a truncated one gets all of it; no token's mass is removed."""
    rollout = await sampled("rlp", engine, language_model)
    if not hands_on:
        rollout = replace(
            rollout,
            thoughts_KG=tuple(
                tuple(replace(t, target_logprobs_H=()) for t in g) for g in rollout.thoughts_KG
            ),
        )
    scorer = Scorer(tiny.serve(directory, "policy"), None, 4096, objectives={"rlp"})
    (scored,) = scorer.score_rollouts([rollout])
    task, model = rollout.task, language_model.model
    bos, bridge = task.prompting.bos_ids, task.prompting.bridge_ids
    for k, position in enumerate(task.positions_K):
        context = task.document.token_ids_N[: position.index]
        without = sum(logprobs(model, bos + context, position.target_ids_H))
        assert scored.baseline_logprobs_K[k] == pytest.approx(without, abs=1e-4)
        for g, thought in enumerate(rollout.thoughts_KG[k]):
            ids = thought.token_ids_L + (() if thought.closed else task.prompting.close_ids)
            after = sum(logprobs(model, bos + context + bridge + ids, position.target_ids_H))
            assert scored.policy_logprobs_KG[k][g] == pytest.approx(after, abs=1e-4)
            assert scored.rewards_KG[k][g] == pytest.approx(after - without, abs=1e-4)


async def test_a_thought_whose_budget_ends_within_the_marker_gets_all_of_it() -> None:
    prompting = Prompting((), (1, 2), (7, 8, 9, 30), num_open_tokens=2, num_close_tokens=3)
    assert prompting.target_prefix((5,), (4, 7, 8), closed=False) == (5, 1, 2, 4, 7, 8, 7, 8, 9, 30)
    assert prompting.target_prefix((5,), (4, 7, 8, 9), closed=True) == (5, 1, 2, 4, 7, 8, 9, 30)


@pytest.fixture(scope="module")
def service(directory: Path) -> RewardService:
    scorer = Scorer(tiny.serve(directory, "policy"), None, 4096)
    loaded = {
        "rlp": objectives.load("rlp"),
        "rpt": objectives.load("rpt", {"prompt": "plain", "prediction_tokens": 2}),
        "rpt_boxed": objectives.load("rpt", {"prompt": "v0"}),
    }
    limits = Limits(max_batch_tokens=4096)
    return RewardService(scorer, loaded, think_open=OPEN, think_close=CLOSE, limits=limits)


async def test_a_thought_sent_as_text_is_closed_by_the_markers_text(
    service: RewardService, language_model: LanguageModel
) -> None:
    """Although its tokenizer merges the marker with what precedes it."""
    tokenizer = language_model.tokenizer
    markers = find_markers(tokenizer, OPEN, CLOSE)
    assert min(map(len, (markers.open_ids, markers.close_ids))) > 1

    def ids_of(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert ids_of("It is 9." + CLOSE) != ids_of("It is 9.") + markers.close_ids
    item = {"context": "what is 4 plus 5?", "target": " 9"}
    item["thoughts"] = ["It is 9." + CLOSE, "It is 9.", list(ids_of("So 9.") + markers.close_ids)]
    (scored,) = (await service.score("rlp", [item]))["items"]
    bos, context = (tokenizer.bos_token_id,), ids_of(item["context"])
    without = sum(logprobs(language_model.model, bos + context, ids_of(" 9")))
    for text, reward in zip(("It is 9.", "It is 9.", "So 9."), scored["rewards"], strict=True):
        before = bos + context + markers.open_ids + ids_of(text) + markers.close_ids
        after = sum(logprobs(language_model.model, before, ids_of(" 9")))
        assert reward == pytest.approx(after - without, abs=1e-4)


async def test_predictions_in_texts_follow_the_markers_text(service: RewardService) -> None:
    item: dict[str, Any] = {"context": "what is 4 plus 5?", "target": " 9."}
    item["thoughts"] = [f"It is 9.{CLOSE} 9.", f"It is 9.{CLOSE} 8.", "It is 9. 9."]
    (plain,) = (await service.score("rpt", [item]))["items"]
    assert list(plain["rewards"]) == [1.0, 0.0, 0.0]
    boxes = [
        f"So{CLOSE} thus \\boxed{{ 9}}.",
        f"So \\boxed{{ 9}}{CLOSE} \\boxed{{ 7}}",
        "\\boxed{ 9}",
    ]
    (boxed,) = (await service.score("rpt_boxed", [item | {"thoughts": boxes}]))["items"]
    assert list(boxed["rewards"]) == [1.0, 0.0, 0.0]
