"""Base, then SFT, then RLVR, by configuration alone; rewards are verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from forethought.lab.demo.corpus import EQUALS, documents
from forethought.lab.demo.corpus import Mixture as DemoMixture
from forethought.run.journal import read_journal
from tests.e2e.processes import BATCH_TASKS, GROUP_SIZE, Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SFT_STEPS, RLVR_STEPS = 3, 6
WORKED = DemoMixture(worked_share=1.0, idle_share=0.0, right_share=1.0, random_share=0.0)


def write_questions(file: Path, mixture: DemoMixture, whole: bool) -> Path:
    """Questions up to the equals sign, and the text after it: all (SFT), or only the answer (RLVR)."""
    with file.open("w", encoding="utf-8") as lines:
        for document in documents(500, seed=3, mixture=mixture):
            question, equals, rest = document.text.partition(EQUALS)
            answer = rest if whole else f" {rest.split()[0]}"  # no separator is inserted
            lines.write(json.dumps({"question": question + equals, "answer": answer}) + "\n")
    return file


def source(file: Path) -> tuple[str, str]:
    sources = f"[{{path = '{file}', prompt_field = 'question', text_field = 'answer'}}]"
    return "corpus.path=", f"corpus.sources={sources}"


def test_sft_then_rlvr(tmp_path: Path) -> None:
    worked = write_questions(tmp_path / "sft.jsonl", WORKED, whole=True)
    plain = write_questions(tmp_path / "rlvr.jsonl", DemoMixture(worked_share=0.0), whole=False)
    with Cluster("memory://", tmp_path) as cluster:
        cluster.whole_run(
            "sft", "objective.name=ntp", f"learner.steps={SFT_STEPS}", *source(worked)
        )
        model = cluster.directory("sft").model()
        cluster.whole_run(
            "rlvr", f"model.path={model}", f"learner.steps={RLVR_STEPS}", *source(plain),
            "objective.name=rlvr", "objective.parameters={prompt = 'plain', verifier = 'exact'}",
        )  # fmt: skip
        records = list(read_journal(cluster.directory("rlvr").journal))
        summary = cluster.summary("rlvr")
        trained = cluster.directory("rlvr").model()
    assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, 0)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    rewards, truths = [], set()
    for result in (result for record in records for result in record.results):
        task = result.rollout.task
        words = tokenizer.convert_ids_to_tokens(task.document.token_ids_N)
        ((position,), (thoughts,)) = task.positions_K, result.rollout.thoughts_KG
        # "<s> amber bear 3 +4 rest *5 +2 rest *3 =" is the prompt, and the word after it the ground truth.
        assert (words[position.index - 1], len(words)) == (EQUALS, position.index + 1)
        truths.add(words[-1])
        assert len(thoughts) == GROUP_SIZE
        said = [tokenizer.convert_ids_to_tokens(thought.prediction_ids) for thought in thoughts]
        right = tuple(float(answer == [words[-1]]) for answer in said)
        assert result.rewards_KG == (right,)
        rewards += right
    assert len(rewards) == RLVR_STEPS * BATCH_TASKS * GROUP_SIZE
    assert len(truths) > 3
    assert 0 < sum(rewards) < len(rewards)
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (model, trained))
    assert any(
        (one != other).any()
        for one, other in zip(before.parameters(), after.parameters(), strict=True)
    )
