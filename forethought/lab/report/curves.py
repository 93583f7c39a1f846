"""The metrics drawn over the steps, and the points of each curve.

Design: a curve is defined by its keys in ``metrics.jsonl`` and a one-sentence note on how to read it;
metrics derived from several keys are computed here, per line, so that drawing needs no knowledge of
metrics. Long runs are drawn as means of equal shares of the steps. The price is that single steps of a
long run are not visible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from forethought.lab.report.numbers import number
from forethought.lab.report.record import Row, RunRecord

MAX_POINTS = 400

Points = tuple[list[float], list[float]]
"""Steps, and the values at them."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure: a solid key, an optional dashed key, and a note on how to read them.

    ``limit`` is the learner's alarm limit. ``share`` is drawn in percent.

    Example:
        ``Curve("Truncated thoughts", "of thoughts that hit their budget", "truncated_share", limit=0.15)``
    """

    title: str
    note: str
    key: str
    dashed_key: str = ""
    limit: float | None = None
    share: bool = False
    log: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The drawn keys."""
        return (self.key, self.dashed_key) if self.dashed_key else (self.key,)


CURVES = (
    Curve("Reward", "mean over a step's thoughts, in the objective's unit", "reward_mean"),
    Curve(
        "Information gain",
        "nats that a thought gains on the next token over the baseline; above 0 thinking helps",
        "information_gain",
    ),
    Curve(
        "Prediction",
        "NLL of the next token in nats: after a thought (solid), without one (dashed)",
        "think_nll",
        "no_think_nll",
    ),
    Curve("Next-token loss", "nats per token", "nll"),
    Curve(
        "Next-token loss in addition to the thoughts",
        "nats per token of plain documents",
        "next_token_nll",
    ),
    Curve(
        "Thought length",
        "tokens: mean (solid), 95th percentile (dashed)",
        "thought_tokens_mean",
        "thought_tokens_p95",
    ),
    Curve(
        "Truncated thoughts",
        "share that hit the budget",
        "truncated_share",
        limit=0.15,
        share=True,
    ),
    Curve(
        "Closed thoughts",
        "share that close by themselves, in a warm-up",
        "closed_share",
        share=True,
    ),
    Curve("Entropy", "of sampled thought tokens, nats per token", "sampled_entropy"),
    Curve(
        "Flat groups",
        "share of groups with zero reward variance: they contribute no gradient",
        "zero_variance_share",
        limit=0.9,
        share=True,
    ),
    Curve("Reward spread", "mean standard deviation within a group", "reward_group_std"),
    Curve(
        "Clipped tokens",
        "share of thought tokens whose ratio left the clip range",
        "clipped_share",
        limit=0.3,
        share=True,
    ),
    Curve(
        "Largest ratio",
        "learner over sampler, of a step's tokens; 1 on fresh samples",
        "ratio_max",
        limit=10,
        log=True,
    ),
    Curve(
        "Effective sample",
        "effective sample size under importance weights, as a share of tokens",
        "effective_sample_share",
        limit=0.5,
        share=True,
    ),
    Curve(
        "No-think drift",
        "nats that no-think prediction lost against the baseline",
        "no_think_drift",
        limit=0.1,
    ),
    Curve("Staleness", "versions between sampling a token and training on it", "lag_mean"),
    Curve("Gradient norm", "before clipping", "grad_norm", log=True),
    Curve("Speed", "trained tokens per second, waiting included", "tokens_per_s"),
    Curve("Step time", "seconds from one step to the next", "seconds_per_step"),
)


def is_known(curve: Curve, runs: Sequence[RunRecord]) -> bool:
    """Whether any of the runs has a value for the curve."""
    return any(points(run.rows, key)[0] for run in runs for key in curve.keys)


def points(rows: Sequence[Row], key: str) -> Points:
    """The finite values of a key by step; works for derived keys too."""
    if key in _DERIVED:
        return _between(rows, _DERIVED[key])
    found = [(number(row.get("step")), number(row.get(key))) for row in rows]
    known = [(step, value) for step, value in found if step is not None and value is not None]
    return [step for step, _ in known], [value for _, value in known]


def thinned(series: Points, most: int = MAX_POINTS) -> Points:
    """At most ``most`` points: a longer series is reduced to means of equal shares."""
    steps, values = series
    size = -(-len(steps) // most)
    if size <= 1:
        return series
    cuts = range(0, len(steps), size)
    return [fmean(steps[i : i + size]) for i in cuts], [fmean(values[i : i + size]) for i in cuts]


def ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Means of the first and the last tenth, because a single step is noisy; None if empty."""
    if not values:
        return None
    share = max(1, len(values) // 10)
    return fmean(values[:share]), fmean(values[-share:])


def mean_phases(rows: Sequence[Row]) -> dict[str, float]:
    """Mean seconds of a step by phase: waiting for thoughts, learning, the rest. Empty if unknown."""
    whole = points(rows, "seconds_per_step")
    timed = set(whole[0])  # the first step of a learner has no predecessor to time it from
    of_these = [row for row in rows if row.get("step") in timed]
    learning, waiting = points(of_these, "step_s")[1], points(of_these, "wait_s")[1]
    if not whole[1] or not learning:
        return {}
    wait_s = fmean(waiting) if waiting else 0.0
    rest_s = max(0.0, fmean(whole[1]) - wait_s - fmean(learning))
    return {"waiting for thoughts": wait_s, "learning": fmean(learning), "the rest": rest_s}


def _between(rows: Sequence[Row], of: Callable[[Row, Row, float], float | None]) -> Points:
    """A value per pair of consecutive lines of one epoch; the gap before a resume is not timed."""
    steps: list[float] = []
    values: list[float] = []
    for before, now in pairwise(rows):
        step, start_s, end_s = (
            number(x) for x in (now.get("step"), before.get("time_unix_s"), now.get("time_unix_s"))
        )
        if step is None or start_s is None or end_s is None or end_s <= start_s:
            continue
        value = of(before, now, end_s - start_s)
        if value is not None and before.get("epoch") == now.get("epoch"):
            steps.append(step)
            values.append(value)
    return steps, values


def _tokens_per_s(before: Row, now: Row, seconds: float) -> float | None:
    first, last = number(before.get("tokens")), number(now.get("tokens"))
    return None if first is None or last is None else (last - first) / seconds


def _seconds_per_step(before: Row, now: Row, seconds: float) -> float | None:
    return seconds


_DERIVED: dict[str, Callable[[Row, Row, float], float | None]] = {
    "tokens_per_s": _tokens_per_s,
    "seconds_per_step": _seconds_per_step,
}
