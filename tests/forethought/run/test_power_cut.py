"""What a power cut leaves in a run directory: empty files, NUL lines, zero-filled tails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from forethought.cli.progress import MetricsTail
from forethought.compute.model import load_language_model
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.errors import InvalidInput
from forethought.run.checkpoints import Checkpoint
from forethought.run.cost import compute_of
from forethought.run.directory import RunDirectory
from forethought.run.journal import Journal, audit, read_journal
from forethought.run.review import review
from forethought.types import ScoredRollout
from tests import tiny
from tests.scored import make_results
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.learner.learner import Learner
from trainer.metrics.step_log import MetricsLog

ZEROS = b"\0" * 4096


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(model: Path) -> list[ScoredRollout]:
    return make_results(load_language_model(model, "float32", "cpu"))


@pytest.fixture
def learner(model: Path) -> Learner:
    return Learner(
        load_language_model(model, "float32", "cpu"), LearnerSection(), BaselineSection()
    )


# --- metrics ---------------------------------------------------------------------------------

TAILS = (b"\0\0\0\n", ZEROS, ZEROS + b"\n", b"\n", b"\xff\xfe\n", b"[]\n", b'{"loss": 1}\n')


@pytest.mark.parametrize("tail", TAILS)
def test_a_resumed_run_cuts_damaged_lines(tail: bytes, run: RunDirectory) -> None:
    run.metrics.write_bytes(b'{"step": 1, "tokens": 5}\n{"step": 2}\n' + tail)
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    log = MetricsLog(run.metrics, num_steps_done=1)
    log.write(2, {"loss": 0.5})
    log.close()
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert lines[0] == '{"step": 1, "tokens": 5}'


@pytest.mark.parametrize("tail", TAILS)
def test_progress_skips_damaged_lines(tail: bytes, run: RunDirectory) -> None:
    tailing = MetricsTail(run.metrics)
    run.metrics.write_bytes(tail.rstrip(b"\n") + b"\n" + b'{"step": 3}\n')
    assert tailing.read() == [{"step": 3}]


def test_the_report_says_that_lines_are_damaged_and_shows_the_rest(run: RunDirectory) -> None:
    run.metrics.write_bytes(b'{"step": 1}\n\0\0\n{"step": 2}\n')
    (problem,) = review(run).problems
    assert "metrics.jsonl cannot be read in full: 1 of its lines" in problem


def test_tokens_are_not_counted_from_damaged_metrics(run: RunDirectory) -> None:
    run.metrics.write_bytes(b'\0\0\n{"step": 2, "tokens": 9}\n')
    with pytest.raises(InvalidInput, match=r"1 lines of .* hold no step"):
        compute_of(Checkpoint("c", run.root, run, 2), "tokens", 7)


# --- epoch and summary -----------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\0\0", b"7x\n", b"9" * 5000])
def test_a_damaged_epoch_is_replaced_by_the_journals(
    content: bytes, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    Journal(run.journal, epoch=12).append(0, 1, [])
    run.note_epoch(12)
    assert run.newest_epoch() == 12
    (run.root / "epoch").write_bytes(content)
    assert run.newest_epoch() == 13  # epoch 13 may have been taken, with nothing consumed yet
    assert "holds no epoch" in caplog.text


def test_a_damaged_epoch_without_a_journal_is_above_zero(run: RunDirectory) -> None:
    (run.root / "epoch").touch()
    assert run.newest_epoch() == 1


@pytest.mark.parametrize("content", [b"", b"\0\0", b"[]", b"\xff"])
def test_a_damaged_summary_is_none(content: bytes, run: RunDirectory) -> None:
    run.write_summary({"steps": 3})
    assert run.read_summary() == {"steps": 3}
    run.summary.write_bytes(content)
    assert run.read_summary() == {}


# --- the journal -----------------------------------------------------------------------------


def batches(run: RunDirectory, results: list[ScoredRollout], epoch: int, numbers: range) -> Path:
    """Append batches of three tasks with consecutive ids; returns the file."""
    journal = Journal(run.journal, epoch)
    for batch in numbers:
        numbered = [
            replace(
                r, rollout=replace(r.rollout, task=replace(r.rollout.task, task_id=3 * batch + i))
            )
            for i, r in enumerate(results)
        ]
        journal.append(batch, batch + 1, numbered)
    return max(run.journal.iterdir())


@pytest.mark.parametrize("tail", [ZEROS, b"\0" * 8, b"\0" * 9, b"\7\0\0\0\0\0\0\0"])
def test_a_zero_filled_tail_of_the_journal_is_no_record(
    tail: bytes, run: RunDirectory, results: list[ScoredRollout]
) -> None:
    path = batches(run, results, 1, range(2))
    path.write_bytes(path.read_bytes() + tail)
    assert [record.batch for record in read_journal(run.journal)] == [0, 1]
    found = audit(run.journal, 6)
    assert (found.num_trained, found.num_lost, found.num_duplicated) == (6, 0, 0)
    reviewed = review(run)
    assert reviewed.audit["num_trained"] == 6
    (problem,) = reviewed.problems
    assert f"The journal cannot be read from byte {path.stat().st_size - len(tail)} of" in problem


@pytest.mark.parametrize("num_zeros", [4, 60, None])
def test_a_zero_filled_record_is_lost_and_said_to_be(
    num_zeros: int | None, run: RunDirectory, results: list[ScoredRollout]
) -> None:
    path = batches(run, results, 1, range(1))
    first = path.stat().st_size
    data = batches(run, results, 1, range(1, 2)).read_bytes()
    num_zeros = num_zeros or len(data) - first - 8
    path.write_bytes(data[:-num_zeros] + b"\0" * num_zeros)
    assert [record.batch for record in read_journal(run.journal)] == [0]
    assert audit(run.journal, 6).num_lost == 3
    assert "The journal cannot be read at byte" in review(run).problems[0]


def test_an_older_record_stands_in_for_a_damaged_one(
    run: RunDirectory, results: list[ScoredRollout]
) -> None:
    batches(run, results, 1, range(3))
    path = batches(run, results, 2, range(2, 3))
    path.write_bytes(path.read_bytes()[:-20] + b"\0" * 20)
    assert [(r.epoch, r.batch) for r in read_journal(run.journal)] == [(1, 0), (1, 1), (1, 2)]


def test_no_journal_has_nothing_to_audit(run: RunDirectory) -> None:
    assert audit(run.journal, 3).num_lost == 3


# --- checkpoints -----------------------------------------------------------------------------


def save(run: RunDirectory, learner: Learner) -> Path:
    progress = Progress(1, 4, 3, 4, 4, 12, 99, 1.5, "{}")
    return save_checkpoint(run, learner, progress, [], keep=2)


@pytest.mark.parametrize("name", ["progress.json", "state.safetensors", "outstanding.binpb"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"\0" * len(data)])
def test_a_damaged_checkpoint_is_refused_by_name(
    name: str, damage: Callable[[bytes], bytes], run: RunDirectory, learner: Learner
) -> None:
    path = save(run, learner) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidInput, match=rf"{name} of checkpoint .* cannot be read .*delete"):
        load_checkpoint(path.parent, learner)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("No space left on device (os error 28)"),
    ],
)
def test_a_checkpoint_without_space_is_refused_and_takes_none(
    error: Exception, run: RunDirectory, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that writes weights has an error of its own for a full disk."""
    older = run.checkpoint(2)
    older.mkdir(parents=True)

    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr("trainer.checkpoint.save_file", refuse)
    with pytest.raises(InvalidInput, match=r"step-000004 cannot be written to .*No space left"):
        save(run, learner)
    assert list(older.parent.iterdir()) == [older]


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_files_of_a_checkpoint_have_the_mode_of_the_umask(
    umask: int, run: RunDirectory, learner: Learner
) -> None:
    checkpoint = save(run, learner)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"state.safetensors", "model.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
