"""Resolving checkpoints, the settings taken from their run, and the error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from forethought.cli.eval import evaluate
from forethought.config import load_settings, write_resolved
from forethought.errors import InvalidInput
from forethought.lab.evaluation.request import Overrides, conditions
from forethought.run.checkpoints import distinct, resolve, series


def add_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of RPT with three checkpoints, whose training text is next to held-out text."""
    (tmp_path / "corpus").mkdir()
    for name in ("train", "heldout"):
        (tmp_path / "corpus" / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    words = [
        f"run.directory={tmp_path / 'rpt'}",
        f"model.path={add_model(tmp_path / 'base')}",
        f"corpus.path={tmp_path / 'corpus' / 'train.jsonl'}",
        "corpus.window_tokens=40",
        "objective.name=rpt",
        "objective.parameters={prompt = 'v3'}",
        "sampling.max_thought_tokens=77",
    ]
    write_resolved(load_settings(None, words, environment={}), tmp_path / "rpt" / "config.toml")
    for step in (20, 40, 60):
        add_model(tmp_path / "rpt" / "checkpoints" / f"step-{step:06d}" / "model")
    return tmp_path / "rpt"


def test_a_run_a_checkpoint_and_its_model_resolve_alike(run: Path) -> None:
    folder = run / "checkpoints" / "step-000060"
    found = [resolve(path) for path in (run, folder, folder / "model")]
    assert {(c.label, c.step, c.model) for c in found} == {
        ("rpt/step-000060", 60, folder / "model")
    }
    assert all(c.run is not None and c.run.root.resolve() == run.resolve() for c in found)
    assert len(distinct(found)) == 1
    base = resolve(run.parent / "base")
    assert (base.label, base.run, base.step) == ("base", None, None)


def test_labels_are_unique(tmp_path: Path) -> None:
    found = [resolve(add_model(tmp_path / name / "base")) for name in ("a", "b")]
    assert [c.label for c in distinct(found)] == [str(tmp_path / n / "base") for n in ("a", "b")]


def test_a_series_begins_with_the_initial_model(run: Path) -> None:
    base = str(run.parent / "base")
    assert [c.step for c in series(run, base)] == [0, 20, 40, 60]
    assert [c.step for c in series(run, "gone")] == [c.step for c in series(run)] == [20, 40, 60]
    assert [c.label for c in series(run, base)][:2] == ["rpt/base", "rpt/step-000020"]
    assert series(run, base)[0].model == Path(base)


def test_a_path_without_checkpoint_is_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a checkpoint; expected a model directory"):
        resolve(tmp_path / "corpus")
    with pytest.raises(InvalidInput, match="holds no checkpoints; expected a run directory"):
        series(tmp_path)


def test_conditions_default_to_the_run(run: Path) -> None:
    given = conditions([resolve(run.parent / "base"), resolve(run)], Overrides())
    assert given.origin == str(run.resolve() / "config.toml")
    assert given.settings.sampling.max_thought_tokens == 77
    assert given.objective.config.prompt == "v3"
    (source,) = given.settings.corpus.resolved_sources()
    assert source.path == str(run.parent / "corpus" / "heldout.jsonl")
    assert given.settings.corpus.window_tokens == 40


def test_an_empty_configuration_is_not_the_defaults(run: Path) -> None:
    (run / "config.toml").write_text("")
    with pytest.raises(InvalidInput, match=r"config\.toml is empty .* restore it"):
        conditions([resolve(run)], Overrides(corpus="books"))


def test_training_text_is_reported_as_such(run: Path) -> None:
    (run.parent / "corpus" / "heldout.jsonl").unlink()
    given = conditions([resolve(run)], Overrides())
    (source,) = given.settings.corpus.resolved_sources()
    assert source.path.endswith("train.jsonl")
    assert "TRAINING TEXT, not held out" in given.corpus_note


def test_overrides_take_precedence(run: Path) -> None:
    overrides = Overrides(
        corpus="other.txt", group_size=3, temperature=0.5, prompt="plain", think_open="[", marks_field="m"
    )  # fmt: skip
    given = conditions([resolve(run)], overrides)
    settings = given.settings
    assert (settings.sampling.group_size, settings.sampling.temperature) == (3, 0.5)
    assert given.objective.config.prompt == "plain"
    (source,) = settings.corpus.resolved_sources()
    assert (source.path, source.marks_field) == ("other.txt", "m")
    assert settings.model.think_open == "["


def test_another_split_of_the_runs_corpus(run: Path) -> None:
    folder = run.parent / "corpus"
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(folder / "train.jsonl"), str(folder)))
    given = conditions([resolve(run)], Overrides(split="test", template="{a} {b}"))
    (source,) = given.settings.corpus.resolved_sources()
    assert (source.path, source.split, source.template) == (str(folder), "test", "{a} {b}")
    assert given.corpus_note == "the split 'test' of the run's corpus"


@pytest.mark.parametrize(
    ("given", "text_field", "template"),
    [
        (Overrides(corpus="a.txt", template="{a}"), "text", "{a}"),
        (Overrides(corpus="a.txt", text_field="b"), "b", ""),
    ],
)
def test_a_template_and_a_text_field_replace_each_other(
    run: Path, given: Overrides, text_field: str, template: str
) -> None:
    (source,) = conditions([resolve(run)], given).settings.corpus.resolved_sources()
    assert (source.text_field, source.template) == (text_field, template)


def test_a_template_that_is_none_is_refused(run: Path) -> None:
    with pytest.raises(InvalidInput, match="it names no column"):
        conditions([resolve(run)], Overrides(template="text"))


def test_without_a_run_a_corpus_is_needed(run: Path) -> None:
    base = [resolve(run.parent / "base")]
    with pytest.raises(InvalidInput, match="expected --corpus"):
        conditions(base, Overrides())
    assert conditions(base, Overrides(corpus="a.txt")).origin.startswith("the defaults")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got 0 checkpoints and no --series; expected one of them"),
        (["RUN", "--series", "RUN"], "got 1 checkpoints and a --series; expected one of them"),
        (["RUN", "--dtype", "int8"], "--dtype is 'int8'; expected one of auto, float32, bfloat16"),
        (["RUN", "--compute", "joules"], "--compute is 'joules'; expected one of flops"),
        (["RUN", "--pass-at", "1,x"], "--pass-at is '1,x'; expected numbers"),
        (["RUN", "--pass-at", "9"], "pass@9 of 8 thoughts"),
        (["RUN", "--prompt", "v9"], "objective 'rpt' refuses its parameters: prompt"),
        (["RUN", "--temperature", "0"], "temperature"),
    ],
)
def test_invalid_arguments_are_reported(run: Path, words: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    given = [str(run) if word == "RUN" else word for word in words]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, InvalidInput)
    assert message in str(result.exception)
