"""The ledger, the journal, checkpoints and epochs: which result counts, and how a new learner resumes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch

from forethought import wire
from forethought.compute.model import load_language_model
from forethought.config import load_settings
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.errors import InvalidInput, Superseded
from forethought.preflight import check_run
from forethought.queue.interface import ConsumerOptions, Message, Stage
from forethought.queue.memory_broker import MemoryBroker
from forethought.run.directory import RunDirectory
from forethought.run.journal import BATCHES_PER_FILE, Journal, audit, first_kept_batch, read_journal
from forethought.types import Document, Position, Prompting, Rollout, Sampling, ScoredRollout, Task
from tests import tiny, virtual_time
from trainer.admission.feed import TaskFeed
from trainer.admission.ledger import Ledger
from trainer.admission.verification import Verification
from trainer.admission.work_in_flight import WorkInFlight
from trainer.assembly import assemble
from trainer.batch.thought_tree import trees_of_documents
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.learner.learner import Learner
from trainer.thinking_run import ThinkingRun

N = 4
"""Tasks of a batch."""


def make_task(task_id: int, epoch: int = 1) -> Task:
    return Task(
        task_id, epoch, task_id // N, 0, "rlp", "{}", Document("d", "s", (5, 6, 7)),
        (Position(1, (6,)),), Prompting((), (39,), (40,)), Sampling(2, 3), seed=1,
    )  # fmt: skip


def result(task_id: int, epoch: int = 1, error: str | None = None) -> ScoredRollout:
    return ScoredRollout(Rollout(make_task(task_id, epoch)), error=error)


def results(batch: int, epoch: int = 1) -> list[ScoredRollout]:
    return [result(task_id, epoch) for task_id in range(batch * N, (batch + 1) * N)]


def ids(tasks: Sequence[Task]) -> list[int]:
    return [task.task_id for task in tasks]


def make_ledger(num_tasks: int = N, timeout_s: float = 60.0) -> Ledger:
    ledger = Ledger(timeout_s)
    ledger.admit(make_task(task_id) for task_id in range(num_tasks))
    return ledger


# --- the ledger ------------------------------------------------------------------------------


async def test_a_result_counts_once_and_only_if_it_is_outstanding() -> None:
    ledger = make_ledger()
    assert ledger.accept(result(1))
    assert not ledger.accept(result(1)), "a duplicate"
    assert not ledger.accept(result(2, epoch=2)), "of another epoch"
    assert not ledger.accept(result(99)), "never admitted"
    assert ledger.num_ignored == 3
    for task_id in (3, 0, 2):
        assert ledger.accept(result(task_id))
    closed = await ledger.close_batch(0)
    assert ids([r.rollout.task for r in closed]) == [0, 1, 2, 3]
    assert not ledger.accept(result(1)), "after its batch was closed"


async def test_a_batch_waits_for_all_of_its_tasks_and_takes_no_other() -> None:
    ledger = make_ledger(2 * N)
    for task_id in (7, 6, 5, 4, 3, 2, 1):
        ledger.accept(result(task_id))
    closing = asyncio.create_task(ledger.close_batch(0))
    done, _ = await asyncio.wait((closing,), timeout=0.05)
    assert not done
    ledger.accept(result(0))
    assert ids([r.rollout.task for r in await closing]) == [0, 1, 2, 3]
    assert ids([r.rollout.task for r in await ledger.close_batch(1)]) == [4, 5, 6, 7]


async def test_a_deadline_becomes_an_error_result() -> None:
    ledger = make_ledger(timeout_s=0.15)
    ledger.accept(result(2))
    started_s = time.monotonic()
    closed = await ledger.close_batch(0)
    assert time.monotonic() - started_s >= 0.1
    assert [r.failure is not None for r in closed] == [True, True, False, True]
    assert "learner.task_timeout_s = 0.15" in (closed[0].failure or "")
    assert not ledger.accept(result(0)), "the real result came too late"
    assert not ledger.outstanding


async def test_a_batchs_clock_starts_when_it_is_waited_for() -> None:
    """Not at its admission: the replicas then still work on the batch before it."""
    ledger = make_ledger(2 * N, timeout_s=0.3)
    await asyncio.sleep(0.4)
    closing = asyncio.create_task(ledger.close_batch(0))
    await asyncio.sleep(0.05)
    for task_id in range(N):
        assert ledger.accept(result(task_id))
    assert not any(r.failure for r in await closing)
    assert all(r.failure for r in await ledger.close_batch(1))


@dataclass
class Pushing:
    """A publisher that is bringing ``version`` to the first replica until ``arrived``."""

    version: int = 0
    longest_push_s: float = 60.0
    arrived: bool = False

    def is_on_its_way(self, version: int) -> bool:
        return not self.arrived and version >= self.version


def expiry_s(pushes: Pushing, arrives_s: float) -> float:
    """When a batch of version 0 without results expires whose clock runs for 2 s."""

    async def simulate() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(arrives_s, setattr, pushes, "arrived", True)
        ledger = Ledger(2.0, pushes)
        ledger.admit(make_task(task_id) for task_id in range(N))
        assert all(r.failure for r in await ledger.close_batch(0))
        return loop.time()

    return virtual_time.run(simulate())


def test_a_clock_does_not_run_while_the_weights_are_on_their_way() -> None:
    """A push of 5 s would otherwise fail every batch, each of which begins another push."""
    assert expiry_s(Pushing(), arrives_s=5.0) == pytest.approx(7.0, abs=0.6)
    assert expiry_s(Pushing(version=1), arrives_s=5.0) == pytest.approx(2.0), "it needs no new ones"
    assert expiry_s(Pushing(longest_push_s=3.0), arrives_s=1e9) == pytest.approx(5.0, abs=0.6)


async def test_clocks_start_again_when_work_was_lost() -> None:
    ledger = make_ledger(timeout_s=0.3)
    closing = asyncio.create_task(ledger.close_batch(0))
    for _ in range(3):
        await asyncio.sleep(0.15)
        ledger.restart_clocks()
    assert not closing.done()
    for task_id in range(N):
        ledger.accept(result(task_id))
    assert not any(r.failure for r in await closing)


def test_each_kind_of_failure_is_logged_once_when_it_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = make_ledger(4)
    reasons = ("token 7 is not finite", "token 9 is not finite", None, "no memory")
    for task_id, reason in enumerate(reasons):
        ledger.accept(result(task_id, error=reason))
    ledger.accept(result(3, error="a duplicate of a task that has its result"))
    said = [record.message for record in caplog.records]
    assert said == [
        "task 0 failed, the first for this reason: token 7 is not finite",
        "task 3 failed, the first for this reason: no memory",
    ]


def test_failures_that_all_differ_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ledger = make_ledger(26)
    for task_id in range(26):
        ledger.accept(result(task_id, error=f"request {chr(97 + task_id)} was lost"))
    said = [record.message for record in caplog.records]
    assert len(said) == 21
    assert said[-1] == "20 reasons of failures are logged; the journal has all"


async def test_outstanding_includes_results_that_were_not_consumed() -> None:
    ledger = make_ledger(2 * N)
    for task_id in (0, 1, 2, 3, 6):
        ledger.accept(result(task_id))
    assert ids(ledger.outstanding) == [*range(2 * N)]
    assert ids(ledger.unanswered) == [4, 5, 7]
    await ledger.close_batch(0)
    assert ids(ledger.outstanding) == [4, 5, 6, 7]


async def test_a_cancelled_close_consumes_nothing() -> None:
    ledger = make_ledger()
    ledger.accept(result(0))
    closing = asyncio.create_task(ledger.close_batch(0))
    await asyncio.wait((closing,), timeout=0.02)
    closing.cancel()
    for task_id in (1, 2, 3):
        ledger.accept(result(task_id))
    await asyncio.wait((closing,))
    assert ids(ledger.outstanding) == [0, 1, 2, 3]
    assert len(await ledger.close_batch(0)) == N


async def test_results_of_a_newer_learner_are_released_to_it() -> None:
    """All learners of a run read one stream: a superseded one must not consume another's results."""
    broker, settings = MemoryBroker(), load_settings(None, [])
    assert await broker.new_epoch(2) == 2
    newer = [Message(i, 2, wire.encode_scored(result(i, epoch=2))) for i in range(3)]
    await broker.put(Stage.SCORED, newer)
    old = WorkInFlight(broker, cast(TaskFeed, None), settings.learner, cast(Verification, None))
    with pytest.raises(Superseded, match="epoch 2 has taken over"):
        await asyncio.wait_for(old.intake(1), 5.0)
    consumer = broker.consumer(
        ConsumerOptions(
            stage=Stage.SCORED, result_stage=None, name="learner-2", lease_s=60.0, max_attempts=1
        )
    )
    assert [d.message for d in await consumer.receive(8, 1.0)] == newer


# --- the journal -----------------------------------------------------------------------------


def write(directory: Path, epoch: int, batches: Sequence[int], keep_batches: int = 0) -> Path:
    journal = Journal(directory, epoch, keep_batches)
    for batch in batches:
        journal.append(batch, batch + 1, results(batch, epoch))
    return max(directory.iterdir())


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, 1, range(3))
    records = list(read_journal(tmp_path))
    assert [(r.epoch, r.batch, r.version) for r in records] == [(1, 0, 1), (1, 1, 2), (1, 2, 3)]
    assert list(records[1].results) == results(1)


@pytest.mark.parametrize("num_bytes_missing", [1, 60])
def test_a_half_written_tail_is_ignored(tmp_path: Path, num_bytes_missing: int) -> None:
    path = write(tmp_path, 1, range(3))
    data = path.read_bytes()
    path.write_bytes(data[:-num_bytes_missing])
    assert [r.batch for r in read_journal(tmp_path)] == [0, 1]
    path.write_bytes(data[: len(data) // 3 + 2])  # within a length
    assert [r.batch for r in read_journal(tmp_path)] == [0]
    write(tmp_path, 2, [1, 2])
    assert [(r.epoch, r.batch) for r in read_journal(tmp_path)] == [(1, 0), (2, 1), (2, 2)]
    assert audit(tmp_path, 3 * N).num_lost == 0


def test_the_newest_epoch_of_a_batch_is_the_history(tmp_path: Path) -> None:
    write(tmp_path, 1, range(6))
    write(tmp_path, 10, [3, 4])
    write(tmp_path, 9, [2, 3, 4])
    assert [(r.epoch, r.batch) for r in read_journal(tmp_path)][:5] == [
        (1, 0), (1, 1), (9, 2), (10, 3), (10, 4),
    ]  # fmt: skip


def test_the_audit_finds_what_is_lost_duplicated_and_failed(tmp_path: Path) -> None:
    write(tmp_path, 1, range(2))
    assert audit(tmp_path, 2 * N) == replace(
        audit(tmp_path, 2 * N), num_trained=8, num_failed=0, num_lost=0, num_duplicated=0
    )
    journal = Journal(tmp_path, 1)
    journal.append(2, 3, [result(8), result(9, error="no"), result(8), result(3)])
    found = audit(tmp_path, 3 * N)
    assert (found.num_lost, found.num_duplicated) == (2, 2)  # lost 10, 11; twice 8, 3
    assert (found.num_trained, found.num_failed) == (11, 1)
    assert audit(tmp_path, 5 * N).num_lost == 2 + 2 * N


def test_the_audit_leaves_out_what_a_dead_learner_did_beyond_the_end(tmp_path: Path) -> None:
    """It reached batch 5; its successor resumed at batch 2 and was stopped after batch 3."""
    write(tmp_path, 1, range(6))
    write(tmp_path, 2, [2, 3])
    found = audit(tmp_path, 4 * N)
    assert (found.num_trained, found.num_lost, found.num_duplicated) == (4 * N, 0, 0)


@pytest.mark.parametrize("num_batches", [BATCHES_PER_FILE, 3 * BATCHES_PER_FILE - 1])
def test_retention_deletes_whole_files_and_the_audit_knows(
    tmp_path: Path, num_batches: int
) -> None:
    keep = 70
    write(tmp_path, 1, range(num_batches), keep_batches=keep)
    kept = [record.batch for record in read_journal(tmp_path)]
    assert kept == list(range(kept[0], num_batches))
    assert min(keep, num_batches) <= len(kept) <= keep + BATCHES_PER_FILE
    assert kept[0] == first_kept_batch(num_batches, keep)
    assert audit(tmp_path, num_batches * N, kept[0] * N).num_lost == 0


# --- checkpoints -----------------------------------------------------------------------------

SECTION = LearnerSection(learning_rate=3e-3, schedule="cosine", warmup_steps=2, steps=8)


def make_learner(model: Path, dtype: str = "float32") -> Learner:
    return Learner(load_language_model(model, dtype, "cpu"), SECTION, BaselineSection(decay=0.9))


def train(learner: Learner, steps: Sequence[int]) -> None:
    for step in steps:
        rng = Random(step)
        documents = [
            Document("d", "s", tuple(rng.randrange(250) for _ in range(12))) for _ in range(3)
        ]
        assert not learner.step(trees_of_documents(documents)).skipped


def progress_of(learner: Learner) -> Progress:
    steps = learner.version
    return Progress(3, steps, N, steps, learner.num_optimizer_steps, N * steps, 99, 1.5, '{"x": 1}')


def save(directory: RunDirectory, learner: Learner, keep: int = 2) -> Path:
    tasks = [make_task(8), make_task(9)]
    return save_checkpoint(directory, learner, progress_of(learner), tasks, keep)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_learner_continues_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    model = tiny.build_model_directory(tmp_path / "model")
    through, first = make_learner(model, dtype), make_learner(model, dtype)
    train(through, range(4))
    train(first, range(2))
    checkpoint = save(RunDirectory(tmp_path / "run"), first)
    random_state = torch.get_rng_state()
    again = make_learner(model, dtype)
    torch.manual_seed(12345)  # a new process: it resumes from the checkpoint only
    progress, outstanding = load_checkpoint(checkpoint, again)
    assert progress == progress_of(first)
    assert list(outstanding) == [make_task(8), make_task(9)]
    assert torch.equal(torch.get_rng_state(), random_state)
    train(again, range(2, 4))
    assert_same_state(through, again)
    train(again, [4])
    with pytest.raises(AssertionError):
        assert_same_state(through, again)


def assert_same_state(one: Learner, other: Learner) -> None:
    assert (one.version, one.num_optimizer_steps) == (other.version, other.num_optimizer_steps)
    states = [learner.state() for learner in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert {name.split("/")[0] for name in states[0]} == {
        "master", "exp_avg", "exp_avg_sq", "step", "baseline", "random",
    }  # fmt: skip
    different = [n for n in states[0] if not torch.equal(states[0][n], states[1][n])]
    assert not different
    assert one.policy_payload() == other.policy_payload()
    assert one.baseline_payload() == other.baseline_payload()


def test_a_partial_directory_is_not_a_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    learner = make_learner(tiny.build_model_directory(tmp_path / "model"))
    train(learner, [0])
    whole = save(directory, learner)
    partial = directory.checkpoint(2).with_name("step-000002.partial")
    (partial / "model").mkdir(parents=True)
    (partial / "progress.json").write_text("{")
    assert directory.latest_checkpoint() == whole
    train(learner, [1])
    assert save(directory, learner) == directory.latest_checkpoint() == directory.checkpoint(2)
    assert not partial.exists(), "what a killed learner left under that name was in the way"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    learner = make_learner(tiny.build_model_directory(tmp_path / "model"))
    for step in range(4):
        train(learner, [step])
        save(directory, learner, keep=2)
    assert directory.complete_checkpoints() == [directory.checkpoint(3), directory.checkpoint(4)]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    learner = make_learner(tiny.build_model_directory(tmp_path / "model"))
    checkpoint = save(RunDirectory(tmp_path / "run"), learner)
    other = make_learner(tiny.build_model_directory(tmp_path / "other", "gpt2"))
    with pytest.raises(InvalidInput, match="does not fit the configured model"):
        load_checkpoint(checkpoint, other)


# --- epochs ----------------------------------------------------------------------------------


async def test_an_epoch_is_never_taken_twice_even_if_redis_forgets(tmp_path: Path) -> None:
    """Before the first checkpoint too: the run directory remembers, not only Redis."""
    model = tiny.build_model_directory(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a few words to think about " * 20)
    words = [f"model.path={model}", f"corpus.path={tmp_path / 'text.txt'}", "redis.url=memory://"]
    words += [f"run.directory={tmp_path / 'run'}", "corpus.window_tokens=32"]
    settings = load_settings(None, words)
    assert [await epoch_of_a_killed_learner(settings) for _ in range(3)] == [1, 2, 3]


async def epoch_of_a_killed_learner(settings: Any) -> int:
    """Start a learner on a Redis that knows nothing, and cancel it once it has taken its epoch."""
    broker = MemoryBroker()
    running = asyncio.create_task(
        ThinkingRun(assemble(settings, check_run(settings)), broker, asyncio.Event()).run()
    )
    async with asyncio.timeout(20):
        while not (manifest := await broker.run()):
            await asyncio.sleep(0.01)  # the manifest says when; there is nothing to wait on
    running.cancel()
    await asyncio.wait((running,))
    epoch = manifest["epoch"]
    assert isinstance(epoch, int)
    return epoch
