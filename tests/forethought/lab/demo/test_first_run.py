"""``forethought init``: the folder it writes makes the demo's run, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethought.cli.init import init
from forethought.config import Settings, load_settings
from forethought.errors import InvalidInput
from forethought.lab.demo import arms

RLP_STEPS = 120


@pytest.fixture
def first(tmp_path: Path) -> Path:
    init(tmp_path / "first", if_missing=False)
    return tmp_path / "first"


def comparable(settings: Settings) -> dict[str, object]:
    """Settings without names, paths and service ports."""
    values = settings.model_dump(mode="json")
    for section, key in (
        ("run", "name"),
        ("run", "directory"),
        ("model", "path"),
        ("corpus", "path"),
        ("checkpoint", "every_steps"),
        ("reward", "http_port"),
    ):
        del values[section][key]
    return values


def test_the_configuration_is_the_arm_of_the_demo(first: Path) -> None:
    words = arms.DemoPlan(Path("anywhere")).rlp("rlp", "marked", RLP_STEPS)
    written = load_settings(first / "run.toml", environment={})
    assert comparable(written) == comparable(load_settings(None, words, environment={}))
    assert Path(written.model.path, "model.safetensors").is_file()
    line = json.loads(Path(written.corpus.path).read_text(encoding="utf-8").split("\n")[0])
    assert line["text"].startswith("<s> ")
    assert line["marks"]


def test_nothing_is_overwritten(first: Path) -> None:
    (first / "run.toml").write_text("mine")
    (first / "model" / "config.json").write_text("mine")
    with pytest.raises(InvalidInput, match=r"already contains model, corpus, run.toml; expected"):
        init(first, if_missing=False)
    init(first, if_missing=True)
    assert (first / "run.toml").read_text() == "mine"
    assert (first / "model" / "config.json").read_text() == "mine"


def test_an_interrupted_init_is_completed(first: Path) -> None:
    (first / "run.toml").unlink()
    (first / "corpus").rename(first / "corpus.partial")
    (first / "corpus.partial" / "train.jsonl").write_text("half a li")
    init(first, if_missing=True)
    assert sorted(path.name for path in first.iterdir()) == ["corpus", "model", "run.toml"]
    assert len((first / "corpus" / "train.jsonl").read_text().splitlines()) == 20_000


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidInput, match=r"cannot write .*file/first/model .*expected a writable folder"
    ):
        init(tmp_path / "file" / "first", if_missing=False)
