"""The outcome of a batch, and after how many of them a run ends."""

from __future__ import annotations

from typing import Any

import pytest

from forethought.run.learning import LearningWatch, Outcome, outcome, reason

LEARNED: dict[str, Any] = {
    "skipped": False,
    "grad_norm": 0.3,
    "tasks_trained": 4,
    "tasks_failed": 0,
}
FAILED = {
    "skipped": True,
    "grad_norm": 0.0,
    "tasks_trained": 0,
    "tasks_failed": 4,
    "failure": "the replica has no memory",
}
NON_FINITE = {"skipped": True, "grad_norm": None, "skipped_passes": 1, "loss": None}
FILTERED = {**LEARNED, "skipped": True, "grad_norm": 0.0, "dropped/zero_variance": 4}
FLAT = {**LEARNED, "grad_norm": 3e-17}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (LEARNED, Outcome.LEARNED),
        (
            {**LEARNED, "tasks_trained": 1, "tasks_failed": 3},
            Outcome.LEARNED,
        ),  # of the one that did not
        ({**LEARNED, "skipped_passes": 3}, Outcome.LEARNED),  # one of four passes updated
        ({"skipped": False}, Outcome.LEARNED),  # a line without gradient norm
        (FAILED, Outcome.FAILED),
        ({**FAILED, "tasks_trained": 4}, Outcome.FAILED),  # half failed, the rest filtered
        ({**FAILED, "tasks_trained": 5}, Outcome.UNLEARNED),
        (NON_FINITE, Outcome.FAILED),
        ({**NON_FINITE, "grad_norm": float("nan")}, Outcome.FAILED),  # as in memory
        (FILTERED, Outcome.UNLEARNED),
        (FLAT, Outcome.UNLEARNED),
    ],
)
def test_outcomes(values: dict[str, Any], expected: Outcome) -> None:
    assert outcome(values) is expected


def test_reasons() -> None:
    assert reason(FAILED) == "the replica has no memory"
    assert "learner.learning_rate is too high" in reason(NON_FINITE)
    assert reason(FILTERED) == "the filters dropped every group (zero_variance 4)"
    assert "the rewards within each group are equal" in reason(FLAT)


def watch_of(*lines: dict[str, Any], failed: int = 3, unlearned: int = 6) -> LearningWatch:
    watch = LearningWatch(failed, unlearned)
    for line in lines:
        watch.see(line)
    return watch


@pytest.mark.parametrize("line", [FAILED, NON_FINITE])
def test_failures_end_a_run_with_the_first_reason(line: dict[str, Any]) -> None:
    assert watch_of(LEARNED, line, line).failure(is_done=False) == ""
    failure = watch_of(LEARNED, line, line, {**FAILED, "failure": "another"}).failure(is_done=False)
    assert "in the last 3 batches, of which 3 failed (learner.max_failed_batches = 3)" in failure
    assert f"the first reason: {reason(line)}" in failure


def test_only_a_learned_batch_resets_the_counts() -> None:
    between = (FAILED, FILTERED, FAILED, FLAT)
    assert watch_of(*between, LEARNED, FAILED, FAILED).failure(is_done=False) == ""
    failure = watch_of(*between, FAILED).failure(is_done=False)
    assert "in the last 5 batches, of which 3 failed (learner.max_failed_batches = 3)" in failure


def test_a_run_without_signal_gets_more_time_and_ends_with_the_filters_counts() -> None:
    assert watch_of(*[FILTERED] * 5).failure(is_done=False) == ""
    failure = watch_of(*[FILTERED] * 6).failure(is_done=False)
    assert "(learner.max_unlearned_batches = 6); the first reason: the filters dropped" in failure


def test_a_run_shorter_than_the_limit_that_learned_nothing_has_failed() -> None:
    assert watch_of(FAILED).failure(is_done=False) == ""
    assert "replica has no memory" in watch_of(FAILED).failure(is_done=True)
    assert "replica has no memory" in watch_of(FAILED, FILTERED).failure(is_done=True)
    assert watch_of(LEARNED, FAILED, FAILED).failure(is_done=True) == ""
    assert watch_of(FILTERED, FLAT).failure(is_done=True) == ""


def test_a_further_learner_gets_the_limits_anew() -> None:
    watch = watch_of(FAILED, FAILED, FAILED)
    watch.resume()
    assert watch.failure(is_done=False) == ""
    other = {**FAILED, "failure": "the disk is full"}
    assert [watch.see(other) for _ in range(2)] == ["the disk is full", ""]
    assert watch.failure(is_done=False) == ""
    assert "the disk is full" in watch.failure(is_done=True), "it ends on five failed batches"
    watch.see(other)
    assert "the first reason: the disk is full" in watch.failure(is_done=False)
    watch.see(LEARNED)
    watch.see(other)
    assert watch.failure(is_done=True) == ""
    assert watch.num_unlearned == 1


def test_a_limit_of_zero_is_none() -> None:
    lines = [FAILED] * 50
    assert watch_of(*lines, failed=0, unlearned=0).failure(is_done=True) == ""
    assert "max_unlearned_batches" in watch_of(*lines, failed=0).failure(is_done=False)
