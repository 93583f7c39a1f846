"""Alarms: problems detected in a run's metrics, each raised once, with its remedy.

Design: pure functions of the lines of ``metrics.jsonl``: means over the last ten steps, compared with
fixed limits or with the run's first ten steps; those of failures need three steps only, because they end a
run before the window is full, and a quarantine is reported at once. So every reader of the file finds the
same alarms. The price is that the limits are the same for every run; they are set so that a healthy run
raises none. A resumed run replays the earlier lines without logging, so it keeps its reference window and
repeats no alarm.

The first alarm, collapse, is the failure mode of an uncalibrated reasoner under a reward that is not
bounded below: it is confidently wrong, log p penalises that without limit, and the quickest way to a
better mean is to stop thinking.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WINDOW_STEPS = 10
_FAILURE_STEPS = 3

QUARANTINE_REMEDY = (
    'restart it; if its successor is quarantined too, use rollout.engine = "torch" for this model, or '
    "raise learner.replay_tolerance_nats where its arithmetic differs on purpose"
)
"""Of a rollout replica that does not compute what the learner computes."""

_KEYS = (
    "failed_share",
    "skipped",
    "skipped_passes",
    "thought_tokens_mean",
    "information_gain",
    "truncated_share",
    "zero_variance_share",
    "clipped_share",
    "ratio_max",
    "effective_sample_share",
    "sampled_entropy",
    "no_think_drift",
    "unchecked_replicas",
)

Means = Mapping[str, float]
"""Means over a window, by key; a key with no finite value in the window is absent."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What was observed, with its numbers, and the remedy.

    Example:
        ``Alarm("truncation", "40 % of thoughts hit their budget", "raise sampling.max_thought_tokens")``
    """

    name: str
    saw: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.saw}: {self.remedy}"


class Alarms:
    """The windows of a run, and the alarms already raised.

    Example:
        ``for alarm in alarms.see(values): log.warning("%s", alarm)``
    """

    def __init__(self) -> None:
        self._first: list[Mapping[str, Any]] = []
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW_STEPS)
        self._raised: set[str] = set()

    def see(self, values: Mapping[str, Any]) -> list[Alarm]:
        """Add a step's metrics; returns the alarms it raises for the first time."""
        if len(self._first) < WINDOW_STEPS:
            self._first.append(values)
        self._recent.append(values)
        recent = means(self._recent)
        found = quarantines(values)
        found += failures(recent) if len(self._recent) >= _FAILURE_STEPS else []
        if len(self._recent) == WINDOW_STEPS:
            found += findings(means(self._first), recent)
        fresh = [alarm for alarm in found if alarm.name not in self._raised]
        self._raised.update(alarm.name for alarm in fresh)
        return fresh


def means(window: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every watched key over the lines with a finite value for it."""
    values: dict[str, list[float]] = {key: [] for key in _KEYS}
    for line in window:
        for key in _KEYS:
            value = line.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                values[key].append(float(value))
    return {key: sum(numbers) / len(numbers) for key, numbers in values.items() if numbers}


def quarantines(values: Mapping[str, Any]) -> list[Alarm]:
    """One alarm per quarantined rollout replica of a step's line, which has each one's reason."""
    reasons: Mapping[str, str] = values.get("quarantined") or {}
    return [
        Alarm(f"quarantine of {replica_id}", reason, QUARANTINE_REMEDY)
        for replica_id, reason in reasons.items()
    ]


def failures(recent: Means) -> list[Alarm]:
    """The alarms of tasks and steps that fail."""
    checks = (_failed_tasks(recent), _non_finite(recent))
    return [alarm for alarm in checks if alarm is not None]


def findings(first: Means, recent: Means) -> list[Alarm]:
    """The alarms of the recent window, by itself or compared with the first."""
    checks = (
        _nothing_left(recent),
        _collapse(first, recent),
        _truncation(recent),
        _flat_groups(recent),
        _clipping(recent),
        _mismatch(recent),
        _small_sample(recent),
        _entropy(first, recent),
        _forgetting(recent),
        _unchecked(recent),
    )
    return [alarm for alarm in checks if alarm is not None]


def _failed_tasks(recent: Means) -> Alarm | None:
    share = recent.get("failed_share", 0.0)
    if share <= 0.1:
        return None
    return Alarm(
        "failures",
        f"{share:.0%} of tasks fail",
        "`forethought report` counts the reasons, the learner's log has the first of each",
    )


def _non_finite(recent: Means) -> Alarm | None:
    num_passes = recent.get("skipped_passes", 0.0)
    if num_passes <= 0.1:
        return None
    return Alarm(
        "non_finite",
        f"{num_passes:.1f} optimizer passes per step are skipped, because loss or gradient is not finite",
        "lower learner.learning_rate, or set model.dtype = float32; from the first step on, it is the "
        "model's weights that are corrupt",
    )


def _nothing_left(recent: Means) -> Alarm | None:
    share = recent.get("skipped", 0.0)
    if share <= 0.9 or failures(recent):
        return None
    return Alarm(
        "nothing_left",
        f"in {share:.0%} of steps nothing is left to learn from",
        "choose other positions (objective.parameters.positions), set weaker filters, or raise "
        "sampling.group_size or sampling.temperature",
    )


def _collapse(first: Means, recent: Means) -> Alarm | None:
    before, now = first.get("thought_tokens_mean", 0.0), recent.get("thought_tokens_mean", math.inf)
    gain = recent.get("information_gain", 0.0)
    if now >= 0.6 * before or gain >= 0:
        return None
    return Alarm(
        "collapse",
        f"thoughts shrink ({before:.1f} to {now:.1f} tokens) and the gain is negative "
        f"({gain:.2f} nats)",
        "the model is learning not to think; use the floored reward, objective.parameters.transform = "
        '"floor" or objective.parameters.floor_until_batch, from the start',
    )


def _truncation(recent: Means) -> Alarm | None:
    share = recent.get("truncated_share", 0.0)
    if share <= 0.15:
        return None
    return Alarm(
        "truncation",
        f"{share:.0%} of thoughts hit their budget",
        'raise sampling.max_thought_tokens, or set filter.truncated = "mask" or "penalise"',
    )


def _flat_groups(recent: Means) -> Alarm | None:
    share = recent.get("zero_variance_share", 0.0)
    if share <= 0.9:
        return None
    return Alarm(
        "flat_groups",
        f"in {share:.0%} of groups all rewards are equal, so they give no gradient",
        "choose other positions (objective.parameters.positions), raise sampling.group_size or "
        "sampling.temperature",
    )


def _clipping(recent: Means) -> Alarm | None:
    share = recent.get("clipped_share", 0.0)
    if share <= 0.3:
        return None
    return Alarm(
        "clipping",
        f"the importance ratio of {share:.0%} of thought tokens is outside its clip range",
        "lower learner.learning_rate, learner.inner_epochs or learner.max_staleness, or set "
        'learner.loss = "cispo", which keeps the gradient of clipped tokens',
    )


def _mismatch(recent: Means) -> Alarm | None:
    ratio = recent.get("ratio_max", 0.0)
    if ratio <= 10:
        return None
    return Alarm(
        "mismatch",
        f"the largest importance ratio of a step is {ratio:.0f} on average",
        "sampler and learner disagree about the log-probs of the same tokens: set "
        "learner.importance_cap = 2, and model.fp32_head = true or model.dtype = float32",
    )


def _small_sample(recent: Means) -> Alarm | None:
    share = recent.get("effective_sample_share", 1.0)
    if not 0 < share < 0.5:  # 0: the step had no thought tokens to train on
        return None
    return Alarm(
        "small_sample",
        f"importance weights reduce the effective sample to {share:.0%} of the thought tokens",
        "lower learner.max_staleness or learner.learning_rate",
    )


def _entropy(first: Means, recent: Means) -> Alarm | None:
    before, now = first.get("sampled_entropy", 0.0), recent.get("sampled_entropy", math.inf)
    if now >= 0.1 * before:
        return None
    return Alarm(
        "entropy",
        f"the entropy of sampled tokens fell from {before:.2f} to {now:.3f} nats",
        "the thoughts of a group hardly differ any more: raise learner.clip_high or "
        "sampling.temperature, or stop here",
    )


def _forgetting(recent: Means) -> Alarm | None:
    drift = recent.get("no_think_drift", 0.0)
    if drift <= 0.1:
        return None
    return Alarm(
        "forgetting",
        f"without thinking, the policy predicts {drift:.2f} nats worse than its baseline",
        "set learner.next_token_coef or learner.next_token_every_steps, or lower learner.learning_rate",
    )


def _unchecked(recent: Means) -> Alarm | None:
    num_replicas = recent.get("unchecked_replicas", 0.0)
    if num_replicas <= 0.5:
        return None
    return Alarm(
        "unchecked",
        f"{num_replicas:.1f} rollout replicas per step are learned from without having been compared with "
        "the learner",
        "the learner's log says why each could not be asked for tokens: it has to reach the replica's gRPC "
        "port (rollout.advertise_host)",
    )
