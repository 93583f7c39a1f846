"""The run directory: complete checkpoints and lines only, and the lock of its owner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from forethought.errors import InvalidInput
from forethought.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_an_empty_run_has_no_checkpoint_and_no_metrics(run: RunDirectory) -> None:
    assert run.complete_checkpoints() == []
    assert run.latest_checkpoint() is None
    assert run.read_metrics() == []
    with pytest.raises(InvalidInput, match="holds no checkpoint yet"):
        run.model()


def test_a_run_id_is_drawn_once(run: RunDirectory, tmp_path: Path) -> None:
    drawn = run.run_id()
    assert run.run_id() == run.run_id("f" * 16) == drawn
    assert RunDirectory(tmp_path / "other").run_id() != drawn


@pytest.mark.parametrize("damage", [b"", b"\0" * 17, b"0123\n"])
def test_a_damaged_run_id_is_that_of_the_checkpoint(run: RunDirectory, damage: bytes) -> None:
    drawn = run.run_id()
    (run.root / "run-id").write_bytes(damage)
    assert run.run_id(drawn) == drawn == run.run_id()
    (run.root / "run-id").unlink()
    assert run.run_id() != drawn, "without a checkpoint it is lost"


def test_checkpoints_are_ordered_by_step_and_not_by_name(run: RunDirectory) -> None:
    for step in (1_000_000, 5, 999_999):
        run.checkpoint(step).mkdir(parents=True)
    names = [path.name for path in run.complete_checkpoints()]
    assert names == ["step-000005", "step-999999", "step-1000000"]
    assert run.model() == run.checkpoint(1_000_000) / "model"


@pytest.mark.parametrize(
    "name", ["step-000009.partial", ".step-000009", "step-9", "other", "xstep-000009"]
)
def test_incomplete_checkpoints_are_skipped(run: RunDirectory, name: str) -> None:
    run.checkpoint(4).mkdir(parents=True)
    (run.checkpoints / name).mkdir()
    assert run.latest_checkpoint() == run.checkpoint(4)


def test_a_line_still_being_written_is_skipped(run: RunDirectory) -> None:
    run.root.mkdir()
    run.metrics.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "rew')
    assert run.read_metrics() == [{"step": 1}]


def test_one_learner_owns_a_run_at_a_time(run: RunDirectory) -> None:
    with run.owned(), pytest.raises(InvalidInput, match="owned by another learner"), run.owned():
        pass
    with run.owned():  # released
        pass


def test_the_lock_dies_with_its_process(run: RunDirectory) -> None:
    hold = (
        "import os, pathlib, sys\n"
        "from forethought.run.directory import RunDirectory\n"
        "with RunDirectory(pathlib.Path(sys.argv[1])).owned():\n"
        "    print('owned', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"owned\n"
        with pytest.raises(InvalidInput, match="still alive"), run.owned():
            pass
        other.kill()
        other.wait()
    with run.owned():
        pass


def test_what_a_killed_owner_did_not_finish_is_removed_by_the_next(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    partial = directory.checkpoints / "step-000007.partial"
    partial.mkdir(parents=True)
    (partial / "state.safetensors").write_bytes(bytes(1000))
    directory.checkpoint(6).mkdir()
    (tmp_path / "epoch.partial").write_text("7")
    with directory.owned():
        assert [entry.name for entry in directory.checkpoints.iterdir()] == ["step-000006"]
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoints", "lock"]
