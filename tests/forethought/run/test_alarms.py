"""The detector, on lines of metrics as a healthy run, a collapsing one and others write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from forethought.run.alarms import WINDOW_STEPS, Alarms, findings, means

HEALTHY: dict[str, float] = {
    "thought_tokens_mean": 6.0,
    "information_gain": 0.3,
    "truncated_share": 0.02,
    "zero_variance_share": 0.1,
    "clipped_share": 0.01,
    "ratio_max": 1.4,
    "effective_sample_share": 0.99,
    "sampled_entropy": 0.9,
    "no_think_drift": 0.01,
}


def run(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, name) of every alarm of a run."""
    alarms = Alarms()
    return [(step, alarm.name) for step, line in enumerate(lines, 1) for alarm in alarms.see(line)]


def test_a_healthy_run_is_silent() -> None:
    growing = [{**HEALTHY, "information_gain": 0.01 * i} for i in range(60)]
    assert run(growing) == []


def test_a_weak_base_under_the_plain_gain_is_told_once_with_its_remedy() -> None:
    """The prototype's early base: length 6.0 to 1.4 in forty steps, gain -0.47 to -0.24."""
    lines = [
        {
            **HEALTHY,
            "thought_tokens_mean": 6.0 - 4.6 * i / 39,
            "information_gain": -0.47 + 0.006 * i,
        }
        for i in range(40)
    ]
    told = run(lines + lines[-1:] * 40)
    assert [name for _, name in told] == ["collapse"]
    assert WINDOW_STEPS < told[0][0] < 40
    alarms = Alarms()
    (alarm,) = [alarm for line in lines for alarm in alarms.see(line)]
    assert "thoughts shrink" in str(alarm)
    assert "the gain is negative (-0." in str(alarm)
    assert 'objective.parameters.transform = "floor"' in str(alarm)


def test_shorter_thoughts_that_help_are_no_collapse() -> None:
    lines = [{**HEALTHY, "thought_tokens_mean": 6.0 - 0.1 * i} for i in range(50)]
    assert run(lines) == []


@pytest.mark.parametrize(
    ("key", "at_limit", "past", "name", "remedy"),
    [
        ("truncated_share", 0.15, 0.16, "truncation", "sampling.max_thought_tokens"),
        ("zero_variance_share", 0.9, 0.91, "flat_groups", "objective.parameters.positions"),
        ("clipped_share", 0.3, 0.31, "clipping", "learner.learning_rate"),
        ("ratio_max", 10.0, 10.5, "mismatch", "learner.importance_cap"),
        ("effective_sample_share", 0.5, 0.49, "small_sample", "learner.max_staleness"),
        ("no_think_drift", 0.1, 0.11, "forgetting", "learner.next_token_coef"),
    ],
)
def test_limits(key: str, at_limit: float, past: float, name: str, remedy: str) -> None:
    assert findings(HEALTHY, {**HEALTHY, key: at_limit}) == []
    (alarm,) = findings(HEALTHY, {**HEALTHY, key: past})
    assert alarm.name == name
    assert remedy in alarm.remedy


def test_entropy_is_held_against_the_runs_own_beginning() -> None:
    first = {**HEALTHY, "sampled_entropy": 0.02}
    assert findings(first, {**first, "sampled_entropy": 0.003}) == []
    (alarm,) = findings(HEALTHY, {**HEALTHY, "sampled_entropy": 0.08})
    assert alarm.name == "entropy"


def test_one_bad_step_is_no_alarm() -> None:
    lines = [HEALTHY] * 20 + [{**HEALTHY, "truncated_share": 1.0}] + [HEALTHY] * 20
    assert run(lines) == []


def test_means_pass_over_what_was_not_measured() -> None:
    window = [
        {"truncated_share": 0.2, "no_think_drift": 0.4},
        {"truncated_share": None},
        {"truncated_share": 0.4, "information_gain": math.nan},
    ]
    assert means(window) == pytest.approx({"truncated_share": 0.3, "no_think_drift": 0.4})


def test_lines_without_these_numbers_are_silent() -> None:
    """Such as a batch that failed whole."""
    assert run([{"num_groups": 0}] * 30) == []
    assert findings({}, {}) == []
