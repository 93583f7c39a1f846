"""Whole runs whose only rollout replica computes another function than the learner: they end in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethought.config import load_settings
from forethought.lab.report import read_runs
from forethought.process import NOTHING_LEARNED
from forethought.run.directory import RunDirectory
from forethought.run.journal import read_journal
from services.single.__main__ import run as run_single
from tests import tiny, unsound_rollout
from trainer.replay import replica_checks


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fault", "num_learned", "staleness"), [("temperature", 0, 0), ("flip", 1, 0), ("flip", 1, 2)]
)
def test_a_run_without_a_sound_replica_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    num_learned: int,
    staleness: int,
) -> None:
    unsound_rollout.apply(fault, monkeypatch.setattr)
    monkeypatch.setattr(replica_checks, "JOINING_S", 0.5)
    model = tiny.build_model_directory(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a few words to think about " * 20)
    words = [
        f"model.path={model}", f"run.directory={tmp_path / 'run'}", "objective.name=rlp",
        f"corpus.path={tmp_path / 'text.txt'}", "corpus.window_tokens=32", "learner.batch_tasks=4",
        "sampling.group_size=3", "sampling.max_thought_tokens=6", "learner.steps=50",
        f"learner.max_staleness={staleness}", "learner.learning_rate=1e-2", "model.dtype=float32",
    ]  # fmt: skip
    assert run_single(load_settings(None, words, {})) == NOTHING_LEARNED
    directory = RunDirectory(tmp_path / "run")
    results = [record.results for record in read_journal(directory.journal)]
    assert len(results) == num_learned + 1
    assert all(result.failure is None for batch in results[:-1] for result in batch)
    (reason,) = {result.failure for result in results[-1]}
    assert reason is not None
    assert "does not compute what the learner computes" in reason
    assert f"sampled by policy version {num_learned}, its mean log-prob is -" in reason
    summary = json.loads(directory.summary.read_text())
    assert (summary["done"], summary["tasks_failed"]) == (False, 4)
    assert f"no sound rollout replica is left: {reason}" in summary["failure"]
    assert caplog.records[-1].message == summary["failure"]
    (record,) = read_runs([directory.root])
    assert record.status == "failed"
    (alarm,) = record.review.alarms
    assert (alarm["step"], alarm["saw"]) == (num_learned + 1, reason)
    assert "restart it" in alarm["remedy"]
