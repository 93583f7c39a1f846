"""Whole runs from the hub: a filled cache and HF_HUB_OFFLINE=1, through every process."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from forethought.config import load_settings
from forethought.run.directory import RunDirectory
from tests.hub_cache import DATASET, FIRST, MODEL, SECOND, HubCache
from tests.tiny import build_model_directory

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
---
"""
CORPUS = (
    f"corpus.path={DATASET}",
    "corpus.subset=main",
    'corpus.template="{question}\\n{answer}"',
    "corpus.strip_pattern=<<[^>]*>>",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> HubCache:
    folder = tmp_path_factory.mktemp("hub")
    cache = HubCache(folder / "home")
    cache.add_folder("model", MODEL, build_model_directory(folder / "model"))
    files = {f"main/{split}-00000-of-00001.parquet": sums(split) for split in ("train", "test")}
    cache.add("dataset", DATASET, files | {"README.md": CARD})
    return cache


def sums(split: str) -> bytes:
    rows = [
        {"question": f"{split}: {i} + {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>{2 * i}."}
        for i in range(40)
    ]
    written = io.BytesIO()
    Dataset.from_list(rows).to_parquet(written)
    return written.getvalue()


def forethought(
    folder: Path, cache: HubCache, *words: str, offline: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forethought.cli", *words],
        cwd=folder,
        env=cache.environment(offline=offline) | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def up(folder: Path, cache: HubCache, *words: str) -> subprocess.CompletedProcess[str]:
    sizes = ("corpus.window_tokens=40", "sampling.group_size=4", "sampling.max_thought_tokens=6")
    small = (
        "learner.batch_tasks=2",
        "rollout.replicas=1",
        "reward.http_port=0",
        "warmup.when=never",
    )
    return forethought(
        folder,
        cache,
        "up",
        f"model.path={MODEL}",
        *CORPUS,
        *sizes,
        *small,
        "run.directory=run",
        *words,
    )


def test_a_run_starts_from_ids_and_resumes_from_the_same_commits(
    tmp_path: Path, cache: HubCache
) -> None:
    first = up(tmp_path, cache, "learner.steps=2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"from the Hugging Face hub: {MODEL}@{FIRST}" in first.stdout
    assert "tiny-sums: 40 documents of 1 file (1 Parquet)" in first.stdout
    assert "of another split or subset (main/test-00000-of-00001.parquet)" in first.stdout
    run = RunDirectory(tmp_path / "run")
    settings = load_settings(run.config, environment={})
    assert (settings.model.path, settings.model.revision) == (MODEL, FIRST)
    assert (settings.corpus.path, settings.corpus.revision) == (DATASET, FIRST)

    for kind, name in (("model", MODEL), ("dataset", DATASET)):  # main moves to a commit not here
        (cache.repository(kind, name) / "refs" / "main").write_text(SECOND)
    try:
        second = up(tmp_path, cache, "learner.steps=3")
    finally:
        for kind, name in (("model", MODEL), ("dataset", DATASET)):
            (cache.repository(kind, name) / "refs" / "main").write_text(FIRST)
    assert second.returncode == 0, second.stdout + second.stderr
    assert run.read_summary()["steps"] == 3

    evaluated = forethought(
        tmp_path, cache, "eval", "run", MODEL, "--split", "test", "--num-documents", "4",
        "--num-positions", "4", "--out", "out",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert f"{MODEL}@{FIRST}" in evaluated.stdout
    assert f"{DATASET}@{FIRST}" in (tmp_path / "out" / "eval.json").read_text()


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_cache_there_is_one_line(tmp_path: Path, offline: bool) -> None:
    """``dry-run``, ``doctor`` and ``up``, also where no network answers."""
    empty = HubCache(tmp_path / "home")
    (tmp_path / "books.txt").write_text("a text")
    reason = "HF_HUB_OFFLINE is set" if offline else "it cannot be downloaded (ConnectError"
    words = (f"model.path={MODEL}", "model.revision=v1", "corpus.path=books.txt")
    for command in (("up", *words), ("train", *words, "objective.name=ntp", "--dry-run")):
        done = forethought(tmp_path, empty, *command, offline=offline)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        for said in (MODEL, "revision v1", str(empty.home / "hub"), reason, "hf download"):
            assert said in line
    done = forethought(tmp_path, empty, "doctor", *words, offline=offline)
    assert done.returncode == 1
    assert reason in " ".join(done.stdout.split())
