"""Tokenizers like those of known families, from a model directory to a served checkpoint.

Each run is a whole one in this process: load, think, score, learn, publish, write a checkpoint; then `eval`
reads the run, and a reward service alone reads the checkpoint.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from forethought import objectives
from forethought.compute.model import load_tokenizer
from forethought.compute.served_model import ServedModel
from forethought.config import Settings, load_settings
from forethought.lab.evaluation.request import EvalRequest, Overrides
from forethought.lab.evaluation.study import evaluate_checkpoints
from forethought.run.checkpoints import resolve
from forethought.run.directory import RunDirectory
from forethought.run.journal import read_journal
from forethought.special_tokens import special_tokens_of
from services.reward.scoring import Scorer
from services.reward.service import Limits, RewardService
from services.reward.standalone import load_models
from services.single.__main__ import run
from tests.families import TEXTS, Family, build_directory

pytestmark = pytest.mark.timeout(240)


TEXT_OPEN, TEXT_CLOSE = "\n\nLet me think:", "\n\nAnswer:"
ADDED = ("model.add_think_tokens=true",)
BOXED = ("objective.name=rpt", "objective.parameters={prompt = 'v1', prediction_tokens = 4}")


@dataclass(frozen=True)
class Convention:
    """A family, the markers of a run and how many tokens they are, and the run's other settings."""

    family: Family
    think_open: str
    think_close: str
    num_tokens: tuple[int, int]
    words: tuple[str, ...] = ()

    @property
    def markers(self) -> list[str]:
        """The settings of the markers."""
        pairs = (("think_open", self.think_open), ("think_close", self.think_close))
        return [f"model.{name}={json.dumps(text)}" for name, text in pairs]


CONVENTIONS = {
    "qwen3, its think tokens": Convention("qwen3", "<think>", "</think>", (1, 1)),
    "qwen3, chat template": Convention("qwen3", "<think>", "</think>", (1, 1), BOXED),
    "llama3, added tokens": Convention("llama3", "<think>", "</think>", (1, 1), ADDED),
    "llama3, text, chat template": Convention("llama3", TEXT_OPEN, TEXT_CLOSE, (14, 3), BOXED),
    "gemma, text": Convention("gemma", TEXT_OPEN, TEXT_CLOSE, (13, 3)),
    "gemma, a token and text": Convention("gemma", "<unused0>", TEXT_CLOSE, (1, 3)),
}


@pytest.fixture(params=CONVENTIONS.values(), ids=CONVENTIONS.keys())
def convention(request: pytest.FixtureRequest) -> Convention:
    found: Convention = request.param
    return found


def settings_of(convention: Convention, folder: Path) -> Settings:
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = [
        f"model.path={build_directory(folder / 'base', convention.family)}",
        f"corpus.path={corpus}", f"run.directory={folder / 'run'}", "corpus.window_tokens=48",
        "sampling.group_size=3", "sampling.max_thought_tokens=6", "learner.batch_tasks=2",
        "learner.steps=2", "model.device=cpu", "model.dtype=float32",
        *convention.markers, *convention.words,
    ]  # fmt: skip
    return load_settings(None, words, {})


def test_a_run_trains_is_evaluated_and_its_checkpoint_served(
    convention: Convention, tmp_path: Path
) -> None:
    settings = settings_of(convention, tmp_path)
    assert run(settings) == 0
    directory = RunDirectory(settings.run.directory)
    results = [r for record in read_journal(directory.journal) for r in record.results]
    assert [result.failure for result in results] == [None] * 4
    bos_ids = special_tokens_of(load_tokenizer(settings.model.path)).bos_ids
    for result in results:
        prompting = result.rollout.task.prompting
        assert prompting.bos_ids == bos_ids
        assert (prompting.num_open_tokens, prompting.num_close_tokens) == convention.num_tokens
        assert not set(bos_ids) & set(prompting.head_ids + result.rollout.task.document.token_ids_N)

    overrides = Overrides(group_size=2)
    given = EvalRequest((resolve(directory.root),), overrides, num_positions=4, num_documents=4)
    (measured,) = evaluate_checkpoints(replace(given, device="cpu"), lambda *_: None)["checkpoints"]
    assert measured["splits"]["all"]["num_positions"] == 4

    check_service(convention, directory.model())


def check_service(convention: Convention, model: Path) -> None:
    """A reward service alone scores texts as a plain pass over the checkpoint's own tokens does."""
    words = [f"reward.policy_path={model}", "model.dtype=float32", *convention.markers]
    settings = load_settings(None, words, {})
    served = ServedModel("policy", "cpu")
    scorer = Scorer(served, None, 4096)
    load_models(settings, scorer)
    service = RewardService(
        scorer,
        {"rlp": objectives.load("rlp")},
        think_open=settings.model.think_open,
        think_close=settings.model.think_close,
        limits=Limits(max_batch_tokens=4096),
    )
    thoughts = ["It is 9", "It is 9." + convention.think_close]
    item = {"context": "Question: what is 4 plus 5?", "target": " 9", "thoughts": thoughts}
    (scored,) = asyncio.run(service.score("rlp", [item]))["items"]
    tokenizer, network = AutoTokenizer.from_pretrained(model), served.now.language_model.model

    def logprob(before: tuple[int, ...], removed: int | None = None) -> float:
        ids = ids_of(tokenizer, " 9")
        with torch.no_grad():
            logits = network(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
        if removed is not None:
            logits[:, removed] = -torch.inf
        return float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())

    markers = [ids_of(tokenizer, text) for text in (convention.think_open, convention.think_close)]
    assert tuple(map(len, markers)) == convention.num_tokens
    context = tuple(tokenizer(item["context"])["input_ids"])  # with its BOS
    without = logprob(context, markers[0][0] if len(markers[0]) == 1 else None)
    for text, reward in zip(("It is 9", "It is 9."), scored["rewards"], strict=True):
        after = logprob(context + markers[0] + ids_of(tokenizer, text) + markers[1])
        assert reward == pytest.approx(after - without, abs=1e-4)


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
