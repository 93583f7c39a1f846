"""How a run comes to a model that knows its markers, from start to the main run's first step."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.config import Settings, load_settings
from forethought.lab.report import read_runs
from forethought.lab.report.facts import identity_rows
from forethought.preflight import check_run
from forethought.run.directory import RunDirectory
from services.single.__main__ import run as run_single
from tests import tiny
from trainer.assembly import Assembly
from trainer.runs import next_token_run
from trainer.warmup import preparation
from trainer.warmup.measurement import Worth
from trainer.warmup.preparation import prepared, warmup_settings

Of = Callable[..., Settings]
GOOD, BAD = Worth(-0.1, 0.01, 0.95, 5.0, 2.0), Worth(-4.0, 0.1, 0.0, 8.0, 2.0)


@pytest.fixture
def of(tmp_path: Path) -> Of:
    (tmp_path / "text.txt").write_text("a few words to think about " * 200)
    model = tiny.build_model_directory(tmp_path / "model")

    def settings(*words: str) -> Settings:
        own = [f"model.path={model}", f"run.directory={tmp_path / 'run'}"]
        own += [f"corpus.path={tmp_path / 'text.txt'}", "corpus.window_tokens=24"]
        own += ["redis.url=memory://", "learner.batch_tasks=2", "learner.steps=2"]
        own += ["sampling.group_size=2", "sampling.max_thought_tokens=4"]
        return load_settings(None, [*own, *words], {})

    return settings


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> Callable[[Worth], None]:
    """Sets what the model's thoughts are said to be worth before the run."""

    def is_worth(measured: Worth) -> None:
        monkeypatch.setattr(preparation, "worth_of_thoughts", lambda *_: measured)

    return is_worth


def run_to_end(parts: Assembly) -> dict[str, Any]:
    return next_token_run(parts).run()


def stopped_at_once(parts: Assembly) -> dict[str, Any]:
    run = next_token_run(parts)
    run.stop()
    return run.run()


def test_a_model_whose_thoughts_cost_little_is_trained_as_it_is(of: Of) -> None:
    """Random weights: no thought changes much, and none closes."""
    settings = of()
    parts, _ = prepared(settings, check_run(settings), run_to_end)
    assert parts is not None
    assert parts.settings.model.path == settings.model.path
    assert parts.warmup["needed"] is False
    assert abs(parts.warmup["before"]["information_gain"]) < 0.3
    assert parts.corpus.cursor.num_drawn == 0


def test_a_costly_one_is_warmed_up_once(of: Of, worth: Callable[[Worth], None]) -> None:
    worth(BAD)
    settings = of("warmup.max_steps=3", "warmup.batch_documents=2")
    parts, _ = prepared(settings, check_run(settings), run_to_end)
    assert parts is not None
    directory = RunDirectory(settings.run.directory)
    assert parts.settings.model.path == str(directory.warmup / "model")
    assert parts.warmup["before"] == BAD.to_dict()
    assert parts.warmup["steps"] == 3
    assert parts.warmup["after"]["closed_share"] < 0.9
    assert len(RunDirectory(directory.warmup / "run").read_metrics()) == 3

    def must_not_run(_: Assembly) -> dict[str, Any]:
        raise AssertionError

    again, _ = prepared(settings, check_run(settings), must_not_run)
    assert again is not None
    assert again.warmup == json.loads(json.dumps(dict(parts.warmup)))


def test_a_stopped_warm_up_is_resumed(of: Of, worth: Callable[[Worth], None]) -> None:
    worth(BAD)
    settings = of("warmup.max_steps=2", "warmup.batch_documents=2")
    parts, summary = prepared(settings, check_run(settings), stopped_at_once)
    assert parts is None
    assert summary["done"] is False
    resumed, _ = prepared(settings, check_run(settings), run_to_end)
    assert resumed is not None
    assert resumed.warmup["steps"] == 2


@pytest.mark.parametrize(
    ("words", "measured", "is_needed"),
    [
        ((), GOOD, False),
        ((), BAD, True),
        (("warmup.when=always",), GOOD, True),
        (("warmup.max_cost_nats=5",), BAD, False),
    ],
)
def test_when_one_is_needed(
    of: Of,
    worth: Callable[[Worth], None],
    words: tuple[str, ...],
    measured: Worth,
    is_needed: bool,
) -> None:
    worth(measured)
    settings = of("warmup.max_steps=1", "warmup.batch_documents=1", *words)
    parts, _ = prepared(settings, check_run(settings), run_to_end)
    assert parts is not None
    assert parts.warmup["needed"] is is_needed


@pytest.mark.parametrize(
    "words",
    [
        ("warmup.when=never",),
        ("objective.name=rpt", 'objective.parameters={prompt = "plain"}'),
        ("objective.name=ntp",),
    ],
    ids=["never", "predictions", "no thoughts"],
)
def test_when_none_is_considered(of: Of, words: tuple[str, ...]) -> None:
    settings = of(*words)
    parts, _ = prepared(settings, check_run(settings), run_to_end)
    assert parts is not None
    assert parts.warmup == {}


def test_it_has_the_prompt_and_the_positions_of_its_run(of: Of, tmp_path: Path) -> None:
    parameters = '{prompt = "v2", positions = "marked", num_positions = 3, answer_nll_coef = 0.2}'
    settings = of(f"objective.parameters={parameters}", "warmup.parameters={marker_rate = 7.0}")
    found = warmup_settings(settings, check_run(settings), tmp_path).objective.parameters
    assert (found["prompt"], found["positions"], found["num_positions"]) == ("v2", "marked", 4)
    assert found["marker_rate"] == 7.0


def test_a_whole_run_starts_from_the_warmed_up_model(
    of: Of, worth: Callable[[Worth], None]
) -> None:
    worth(BAD)
    settings = of("warmup.max_steps=2", "warmup.batch_documents=2")
    assert run_single(settings) == 0
    directory = RunDirectory(settings.run.directory)
    assert directory.read_summary()["steps"] == 2
    checkpoint = directory.latest_checkpoint()
    assert checkpoint is not None
    recorded = json.loads((checkpoint / "progress.json").read_text())["warmup"]
    assert recorded == directory.read_warmup()
    rows = {row.name: row.values for row in identity_rows(read_runs([directory.root]))}
    assert rows["Warm-up"][0].startswith("2 steps: -4.000 nats, 0% closed")


def test_a_run_with_a_checkpoint_does_without_the_warmed_up_model(
    of: Of, worth: Callable[[Worth], None]
) -> None:
    worth(BAD)
    settings = of("warmup.max_steps=1", "warmup.batch_documents=1")
    assert run_single(settings) == 0
    directory = RunDirectory(settings.run.directory)
    shutil.rmtree(directory.warmup / "model")
    assert run_single(of("warmup.max_steps=1", "warmup.batch_documents=1", "learner.steps=3")) == 0
    assert directory.read_summary()["steps"] == 3
    assert not (directory.warmup / "model").exists()


async def test_its_goal_ends_it(of: Of, tmp_path: Path) -> None:
    """A limit that random thoughts meet ends it before its first step."""
    settings = of("warmup.max_cost_nats=9", "warmup.min_closed_share=0")
    of_warmup = warmup_settings(settings, check_run(settings), tmp_path)
    from trainer.assembly import assemble

    run = next_token_run(assemble(of_warmup, check_run(of_warmup)))
    summary = await run.run_until(asyncio.Event())
    assert (summary["steps"], summary["done"]) == (0, True)
