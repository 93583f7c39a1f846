"""Runs that learn nothing: when they end, what they leave, and how they are resumed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.config import Settings, load_settings
from forethought.lab.report import read_runs
from forethought.preflight import check_run
from forethought.process import NOTHING_LEARNED
from forethought.queue.memory_broker import MemoryBroker
from forethought.run.directory import RunDirectory
from services.single.__main__ import run as run_single
from tests import tiny
from trainer.__main__ import train
from trainer.assembly import assemble
from trainer.thinking_run import ThinkingRun

Of = Callable[..., Settings]


@pytest.fixture
def of(tmp_path: Path) -> Of:
    """Settings of a run in ``tmp_path/run``, of a sound model unless it is ``broken``."""
    (tmp_path / "text.txt").write_text("a few words to think about " * 20)
    sound = tiny.build_model_directory(tmp_path / "sound")
    broken = tiny.corrupt(tiny.build_model_directory(tmp_path / "broken"))

    def settings(*words: str, objective: str = "ntp", is_broken: bool = False) -> Settings:
        own = [f"model.path={broken if is_broken else sound}", f"run.directory={tmp_path / 'run'}"]
        own += [f"corpus.path={tmp_path / 'text.txt'}", "corpus.window_tokens=32"]
        own += [f"objective.name={objective}", "redis.url=memory://", "learner.batch_tasks=2"]
        own += ["sampling.group_size=2", "sampling.max_thought_tokens=4", "learner.steps=9"]
        return load_settings(None, [*own, *words], {})

    return settings


def summary_of(settings: Settings) -> dict[str, Any]:
    return RunDirectory(settings.run.directory).read_summary()


@pytest.mark.parametrize("start", [train, run_single])
def test_a_next_token_run_whose_loss_is_never_finite(
    start: Callable[[Settings], int], of: Of, caplog: pytest.LogCaptureFixture
) -> None:
    settings = of(is_broken=True)
    assert start(settings) == NOTHING_LEARNED
    assert "step 1: nothing was learned from its batch: its loss or gradient was" in caplog.text
    assert "step 3: 1.0 optimizer passes per step are skipped" in caplog.text
    assert caplog.records[-1].message == summary_of(settings)["failure"]
    assert "in the last 5 batches, of which 5 failed" in caplog.records[-1].message
    directory = RunDirectory(settings.run.directory)
    assert directory.latest_checkpoint() == directory.checkpoint(5)
    assert [row["unlearned_batches"] for row in directory.read_metrics()] == [1, 2, 3, 4, 5]
    assert not directory.finished_note(settings.learner)
    # The same command tries again, to the last step, and does not call the rest a success.
    assert start(settings) == NOTHING_LEARNED
    assert directory.latest_checkpoint() == directory.checkpoint(9)
    assert start(settings) == NOTHING_LEARNED
    assert "of which 9 failed" in summary_of(settings)["failure"]
    assert [record.status for record in read_runs([directory.root])] == ["failed"]


def test_a_run_shorter_than_the_limit(of: Of) -> None:
    assert train(of("learner.steps=2", is_broken=True)) == NOTHING_LEARNED
    assert summary_of(of())["done"] is False
    assert train(of("learner.steps=2", "learner.max_failed_batches=0", is_broken=True)) == 0


def test_a_matched_budget_does_not_count_as_done(of: Of) -> None:
    """Tokens of skipped passes are trained on by the count, and nothing is learned from them."""
    words = ("learner.steps=1000000000", "learner.max_tokens=100")
    assert train(of(*words, is_broken=True)) == NOTHING_LEARNED


def test_a_run_without_answers_ends_and_resumes_once_there_are_some(of: Of) -> None:
    """The journal has the reason of every task; the manifest in Redis says why the run ended."""
    settings = of("learner.task_timeout_s=0.05", "learner.stay=true", objective="rlp")
    summary, manifest = asyncio.run(without_replicas(settings))
    expired = "no result within learner.task_timeout_s = 0.05 s"
    assert (summary["steps"], summary["done"], summary["tasks_failed"]) == (5, False, 10)
    assert f"the first reason: {expired}" in summary["failure"]
    assert (manifest["state"], manifest["failure"]) == ("failed", summary["failure"])
    directory = RunDirectory(settings.run.directory)
    rows = directory.read_metrics()
    assert [(row["failed_share"], row["failure"]) for row in rows] == [(1.0, expired)] * 5
    (record,) = read_runs([directory.root])
    assert record.review.failures == {expired: 10}
    assert [alarm["name"] for alarm in record.review.alarms] == ["failures"]
    assert run_single(of(objective="rlp")) == 0
    assert (summary_of(settings)["done"], summary_of(settings).get("failure")) == (True, None)
    assert [row["unlearned_batches"] for row in directory.read_metrics()][4:] == [5, 0, 0, 0, 0]


async def without_replicas(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's summary, and its manifest in the broker."""
    broker = MemoryBroker()
    parts = assemble(settings, check_run(settings))
    summary = await ThinkingRun(parts, broker, asyncio.Event()).run()
    manifest = await broker.run()
    assert manifest is not None
    return summary, manifest
