"""A learner that is refused, or has nothing to train, leaves the run directory as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from forethought.config import Settings, load_settings
from forethought.errors import InvalidInput
from forethought.preflight import check_run
from forethought.queue.memory_broker import MemoryBroker
from forethought.run.directory import RunDirectory
from services.single.__main__ import run as run_single
from tests import tiny
from trainer.__main__ import train
from trainer.assembly import assemble
from trainer.checkpoint import Progress, save_checkpoint
from trainer.thinking_run import ThinkingRun

TEXT, OTHER = "a few words to think about ", "another text altogether, "
KEPT = ("config.toml", "summary.json", "epoch", "metrics.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> Callable[..., Settings]:
    for name, text in (("text", TEXT), ("other", OTHER)):
        (tmp_path / f"{name}.txt").write_text(text * 20)

    def of(*words: str, corpus: str = "text", objective: str = "ntp") -> Settings:
        own = [f"model.path={model}", f"run.directory={tmp_path / 'run'}", "learner.steps=2"]
        own += [f"corpus.path={tmp_path / corpus}.txt", "corpus.window_tokens=32"]
        own += [f"objective.name={objective}", "redis.url=memory://", "learner.batch_tasks=4"]
        return load_settings(None, [*own, *words], {})

    return of


def contents(directory: RunDirectory) -> dict[str, tuple[bytes, int]]:
    """The content and the time of the last write of every file that describes the run."""
    paths = [directory.root / name for name in KEPT]
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths if p.exists()}


Train = Callable[[Settings], int]


@pytest.mark.parametrize("start", [train, run_single])
def test_a_refused_rerun_writes_nothing(start: Train, settings: Callable[..., Settings]) -> None:
    assert start(settings()) == 0
    directory = RunDirectory(settings().run.directory)
    before = contents(directory)
    assert before.keys() >= {"config.toml", "summary.json", "metrics.jsonl"}
    with pytest.raises(InvalidInput, match="trained on another corpus"):
        start(settings("learner.steps=4", corpus="other"))
    assert contents(directory) == before


@pytest.mark.parametrize("start", [train, run_single])
@pytest.mark.parametrize("words", [(), ("objective.name=rlp",), ("learner.steps=1",)])
def test_a_finished_run_says_so_and_writes_nothing(
    words: tuple[str, ...],
    start: Train,
    settings: Callable[..., Settings],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert start(settings()) == 0
    directory = RunDirectory(settings().run.directory)
    before = contents(directory)
    caplog.set_level("INFO")
    assert start(settings("learner.learning_rate=0.5", "auth.open=true", *words)) == 0
    assert "has finished at step 2: nothing is trained" in caplog.text
    assert contents(directory) == before


def test_a_run_that_goes_on_records_its_new_settings(settings: Callable[..., Settings]) -> None:
    assert train(settings()) == 0
    more = settings("learner.steps=3", "learner.learning_rate=0.25")
    assert train(more) == 0
    recorded = load_settings(RunDirectory(more.run.directory).config, (), {})
    assert (recorded.learner.steps, recorded.learner.learning_rate) == (3, 0.25)


def test_a_resumed_run_computes_in_the_type_it_began_with(
    settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever auto would be: on another machine, after an upgrade."""
    caplog.set_level("INFO")
    assert train(settings()) == 0
    assert recorded_dtype(settings()) == "float32"  # resolved: the model is small
    assert "precision: float32 (bfloat16 gains nothing at hidden size 32)" in caplog.text
    assert train(settings("learner.steps=3", "model.dtype=bfloat16")) == 0
    for start, steps in ((train, 4), (run_single, 5)):
        assert start(settings(f"learner.steps={steps}")) == 0
        assert recorded_dtype(settings()) == "bfloat16"
    assert (
        caplog.text.count("precision: bfloat16 (as the run's checkpoint), sums of gradients") == 2
    )
    assert train(settings("learner.steps=6", "model.dtype=float32")) == 0
    assert recorded_dtype(settings()) == "float32"


def recorded_dtype(settings: Settings) -> str:
    directory = RunDirectory(settings.run.directory)
    (weights,) = (directory.model()).glob("*.safetensors")
    recorded = load_settings(directory.config, (), {}).model.dtype
    assert {str(t.dtype) for t in load_file(weights).values()} == {f"torch.{recorded}"}
    return recorded


@pytest.mark.parametrize("content", [None, "", '{"steps": 2, "done": false, "tokens": 1}'])
def test_a_finished_run_without_its_summary_gets_one(
    content: str | None, settings: Callable[..., Settings]
) -> None:
    assert train(settings()) == 0
    directory = RunDirectory(settings().run.directory)
    config = directory.config.read_bytes()
    if content is None:
        directory.summary.unlink()
    else:
        directory.summary.write_text(content)
    assert train(settings("learner.learning_rate=0.5")) == 0
    assert directory.read_summary()["done"] is True
    assert directory.config.read_bytes() == config, "no step was trained with the new settings"


def test_a_learner_that_stays_is_never_finished(settings: Callable[..., Settings]) -> None:
    assert train(settings()) == 0
    directory = RunDirectory(settings().run.directory)
    assert directory.finished_note(settings().learner)
    assert not directory.finished_note(settings("learner.stay=true").learner)
    assert not directory.finished_note(settings("learner.steps=3").learner)


async def test_a_thinking_run_records_its_settings_once_accepted(
    settings: Callable[..., Settings],
) -> None:
    first = settings(objective="rlp")
    directory = RunDirectory(first.run.directory)
    await until_recorded(first, directory)
    directory.config.unlink()
    refused = settings(objective="rlp", corpus="other")
    save_a_checkpoint(first)
    with pytest.raises(InvalidInput, match="trained on another corpus"):
        await thinking(refused).run()
    assert not directory.config.exists()


def thinking(settings: Settings) -> ThinkingRun:
    parts = assemble(settings, check_run(settings))
    return ThinkingRun(parts, MemoryBroker(), asyncio.Event())


async def until_recorded(settings: Settings, directory: RunDirectory) -> None:
    """Start a learner without replicas, and cancel it once it has recorded its settings."""
    running = asyncio.create_task(thinking(settings).run())
    async with asyncio.timeout(30):
        while not directory.config.exists():
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def save_a_checkpoint(settings: Settings) -> None:
    parts = assemble(settings, check_run(settings))
    cursor = parts.corpus.cursor.to_json()
    progress = Progress(1, 1, 4, 1, 1, 4, 9, 1.0, cursor)
    save_checkpoint(parts.directory, parts.learner, progress, (), keep=1)
