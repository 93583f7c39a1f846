"""The alarms, on metrics lines of a healthy run, a collapsing one and others."""

from __future__ import annotations

import math
from typing import Any

import pytest

from forethought.run.alarms import WINDOW_STEPS, Alarms, failures, findings, means

HEALTHY: dict[str, float] = {
    "failed_share": 0.0,
    "skipped": False,
    "skipped_passes": 0,
    "thought_tokens_mean": 6.0,
    "information_gain": 0.3,
    "truncated_share": 0.02,
    "zero_variance_share": 0.1,
    "clipped_share": 0.01,
    "ratio_max": 1.4,
    "effective_sample_share": 0.99,
    "sampled_entropy": 0.9,
    "no_think_drift": 0.01,
    "unchecked_replicas": 0,
}


def run(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, name) of every alarm of a run."""
    alarms = Alarms()
    return [(step, alarm.name) for step, line in enumerate(lines, 1) for alarm in alarms.see(line)]


def test_a_healthy_run_is_silent() -> None:
    growing = [{**HEALTHY, "information_gain": 0.01 * i} for i in range(60)]
    assert run(growing) == []


def test_a_collapse_under_the_plain_gain_is_raised_once_with_its_remedy() -> None:
    """The prototype's early base model: length 6.0 to 1.4 in forty steps, gain -0.47 to -0.24."""
    lines = [
        {
            **HEALTHY,
            "thought_tokens_mean": 6.0 - 4.6 * i / 39,
            "information_gain": -0.47 + 0.006 * i,
        }
        for i in range(40)
    ]
    raised = run(lines + lines[-1:] * 40)
    assert [name for _, name in raised] == ["collapse"]
    assert WINDOW_STEPS < raised[0][0] < 40
    alarms = Alarms()
    (alarm,) = [alarm for line in lines for alarm in alarms.see(line)]
    assert "thoughts shrink" in str(alarm)
    assert "the gain is negative (-0." in str(alarm)
    assert 'objective.parameters.transform = "floor"' in str(alarm)


def test_every_quarantine_is_raised_at_once_and_once() -> None:
    """Its reason has the numbers of both sides."""
    first = {"quarantined": {"rollout-a": "rollout-a is off by 0.3 nats"}}
    both = {"quarantined": {**first["quarantined"], "rollout-b": "rollout-b is off by 0.4 nats"}}
    alarms = Alarms()
    raised = [alarms.see({**HEALTHY, **line}) for line in ({}, first, first, both, both)]
    assert [[alarm.name for alarm in of_step] for of_step in raised] == [
        [], ["quarantine of rollout-a"], [], ["quarantine of rollout-b"], [],
    ]  # fmt: skip
    assert "off by 0.4 nats: restart it" in str(raised[3][0])


def test_shorter_thoughts_that_help_are_not_a_collapse() -> None:
    lines = [{**HEALTHY, "thought_tokens_mean": 6.0 - 0.1 * i} for i in range(50)]
    assert run(lines) == []


@pytest.mark.parametrize(
    ("key", "at_limit", "past", "name", "remedy"),
    [
        ("skipped", 0.9, 0.91, "nothing_left", "weaker filters"),
        ("truncated_share", 0.15, 0.16, "truncation", "sampling.max_thought_tokens"),
        ("zero_variance_share", 0.9, 0.91, "flat_groups", "objective.parameters.positions"),
        ("clipped_share", 0.3, 0.31, "clipping", "learner.learning_rate"),
        ("ratio_max", 10.0, 10.5, "mismatch", "learner.importance_cap"),
        ("effective_sample_share", 0.5, 0.49, "small_sample", "learner.max_staleness"),
        ("no_think_drift", 0.1, 0.11, "forgetting", "learner.next_token_coef"),
        ("unchecked_replicas", 0.5, 0.6, "unchecked", "rollout.advertise_host"),
    ],
)
def test_limits(key: str, at_limit: float, past: float, name: str, remedy: str) -> None:
    assert findings(HEALTHY, {**HEALTHY, key: at_limit}) == []
    (alarm,) = findings(HEALTHY, {**HEALTHY, key: past})
    assert alarm.name == name
    assert remedy in alarm.remedy


def test_entropy_is_compared_with_the_start_of_the_run() -> None:
    first = {**HEALTHY, "sampled_entropy": 0.02}
    assert findings(first, {**first, "sampled_entropy": 0.003}) == []
    (alarm,) = findings(HEALTHY, {**HEALTHY, "sampled_entropy": 0.08})
    assert alarm.name == "entropy"


def test_one_bad_step_raises_no_alarm() -> None:
    lines = [HEALTHY] * 20 + [{**HEALTHY, "truncated_share": 1.0}] + [HEALTHY] * 20
    assert run(lines) == []


def test_means_skip_missing_values() -> None:
    window = [
        {"truncated_share": 0.2, "no_think_drift": 0.4},
        {"truncated_share": None},
        {"truncated_share": 0.4, "information_gain": math.nan},
    ]
    assert means(window) == pytest.approx({"truncated_share": 0.3, "no_think_drift": 0.4})


def test_lines_without_these_numbers_are_silent() -> None:
    """For example those of a batch in which every task failed."""
    assert run([{"num_groups": 0}] * 30) == []
    assert findings({}, {}) == []


@pytest.mark.parametrize(
    ("key", "at_limit", "past", "name", "remedy"),
    [
        ("failed_share", 0.1, 0.11, "failures", "forethought report"),
        ("skipped_passes", 0.1, 0.11, "non_finite", "learner.learning_rate"),
    ],
)
def test_failures_need_no_full_window(
    key: str, at_limit: float, past: float, name: str, remedy: str
) -> None:
    assert failures({**HEALTHY, key: at_limit}) == []
    (alarm,) = failures({**HEALTHY, key: past})
    assert (alarm.name, remedy in alarm.remedy) == (name, True)
    assert run([{**HEALTHY, key: 1.0, "skipped": True}] * 20) == [(3, name)]
