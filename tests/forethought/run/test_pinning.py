"""A run keeps the commits that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forethought.config import Settings, write_resolved
from forethought.errors import InvalidInput
from forethought.run.directory import RunDirectory
from forethought.run.pinning import pinned, pinned_path
from tests.hub_cache import DATASET, FIRST, MODEL, SECOND, HubCache

MODEL_FILES = {"config.json": b"{}", "model.safetensors": b"weights"}
TEXT = {"train.jsonl": b'{"text": "a"}\n'}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    cache = HubCache(tmp_path / "home")
    cache.use(monkeypatch)
    cache.add("model", MODEL, MODEL_FILES, FIRST)
    cache.add("dataset", DATASET, TEXT, FIRST)
    return cache


def settings_of(tmp_path: Path, model: dict[str, Any], corpus: dict[str, Any]) -> Settings:
    run = {"directory": str(tmp_path / "run")}
    return Settings.model_validate({"run": run, "model": model, "corpus": corpus})


def move_main(cache: HubCache) -> None:
    cache.add("model", MODEL, MODEL_FILES, SECOND)
    cache.add("dataset", DATASET, TEXT, SECOND)


def has_trained(settings: Settings) -> None:
    RunDirectory(settings.run.directory).checkpoint(1).mkdir(parents=True)


def test_ids_get_the_commit_and_local_paths_stay(cache: HubCache, tmp_path: Path) -> None:
    local = {"path": str(tmp_path)}
    settings = settings_of(tmp_path, {"path": MODEL}, {"path": DATASET, "sources": [local]})
    found = pinned(settings)
    assert (found.model.path, found.model.revision) == (MODEL, FIRST)
    assert (found.corpus.path, found.corpus.revision) == (DATASET, FIRST)
    assert found.corpus.sources[0] == settings.corpus.sources[0]
    assert pinned(found) == found
    given = settings_of(tmp_path, local, local)
    assert pinned(given) == given


def test_a_revision_in_the_path_becomes_the_commit(cache: HubCache, tmp_path: Path) -> None:
    cache.add("model", MODEL, MODEL_FILES, SECOND, ref="v2")
    settings = settings_of(
        tmp_path, {"path": f"{MODEL}@v2"}, {"sources": [{"path": f"{DATASET}@main"}]}
    )
    found = pinned(settings)
    assert (found.model.path, found.model.revision) == (MODEL, SECOND)
    assert (found.corpus.sources[0].path, found.corpus.sources[0].revision) == (DATASET, FIRST)
    assert pinned_path(f"{MODEL}@v2") == f"{MODEL}@{SECOND}"
    assert pinned_path("models/base/at/home") == "models/base/at/home"


@pytest.mark.parametrize("file", ["up.toml", "config.toml", "warmup/run/config.toml"])
def test_a_run_keeps_its_commits_when_the_branch_moves(
    cache: HubCache, tmp_path: Path, file: str
) -> None:
    settings = settings_of(tmp_path, {"path": MODEL}, {"sources": [{"path": DATASET}]})
    first = pinned(settings)
    write_resolved(first, tmp_path / "run" / file)
    move_main(cache)
    assert pinned(settings) == first
    elsewhere = settings.run.model_copy(update={"directory": tmp_path / "another"})
    moved = pinned(settings.model_copy(update={"run": elsewhere}))
    assert (moved.model.revision, moved.corpus.sources[0].revision) == (SECOND, SECOND)


def test_a_branch_is_followed_until_the_run_has_trained(cache: HubCache, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"path": MODEL, "revision": "main"}, {"path": DATASET})
    write_resolved(pinned(settings), tmp_path / "run" / "config.toml")
    move_main(cache)
    assert pinned(settings).model.revision == SECOND
    has_trained(settings)
    assert pinned(settings).model.revision == FIRST


def test_a_run_that_has_trained_refuses_another_commit(cache: HubCache, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"path": MODEL}, {"path": DATASET})
    write_resolved(pinned(settings), tmp_path / "run" / "config.toml")
    move_main(cache)
    other = settings_of(tmp_path, {"path": MODEL, "revision": SECOND}, {"path": DATASET})
    assert pinned(other).model.revision == SECOND
    has_trained(settings)
    with pytest.raises(InvalidInput, match=f"was started from {MODEL} at {FIRST}, got .* {SECOND}"):
        pinned(other)


def test_a_damaged_configuration_pins_nothing(cache: HubCache, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"path": MODEL}, {"path": DATASET})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_bytes(b"\0\0\0")
    assert pinned(settings).model.revision == FIRST
