"""What an evaluation came to: a mean over runs per figure, the suite's own mean, a table, JSON.

Design: with several runs the spread between them is told, with one the harness's standard error over
questions: two things, named apart. The price is a column that is empty in one of the cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from forethought.lab.downstream.harness import HarnessOptions, Results
from forethought.lab.downstream.suites import Suite

if TYPE_CHECKING:
    from rich.table import Table

_STDERR = "_stderr"


@dataclass(frozen=True, slots=True)
class Score:
    """A figure of a task: its mean over runs, the standard deviation of runs, the error over questions.

    Example:
        ``Score("gsm8k", "exact_match,flexible-extract", 0.745, runs=(0.74, 0.75), run_std=0.007)``
    """

    task: str
    metric: str
    mean: float
    runs: tuple[float, ...]
    run_std: float | None = None
    stderr: float | None = None
    counts: bool = False  # in the suite's mean


def scores_of(suite: Suite, runs: Sequence[Results]) -> list[Score]:
    """Every figure of every task and group, those that count for the suite marked."""
    counting = {(scored.task, scored.metric) for scored in suite.tasks if suite.has_mean}
    return [
        _score(task, metric, runs, (task, metric) in counting)
        for task in runs[0]
        for metric in _metrics(runs[0][task])
    ]


def suite_mean(scores: Iterable[Score]) -> float | None:
    """The mean of the figures that count, as the papers average tasks; None where none is said to."""
    counting = [score.mean for score in scores if score.counts]
    return fmean(counting) if counting else None


def report(
    model: str, name: str, suite: Suite, asking: HarnessOptions, scores: Sequence[Score]
) -> dict[str, Any]:
    """Everything as a dictionary that JSON takes: settings, versions, figures."""
    from importlib.metadata import version

    return {
        "model": model,
        "suite": name,
        "settings": asdict(suite) | asdict(asking),
        "versions": {package: version(package) for package in ("lm_eval", "transformers", "torch")},
        "mean": suite_mean(scores),
        "scores": [asdict(score) for score in scores],
    }


def table(title: str, scores: Sequence[Score]) -> Table:
    """The figures for a terminal; those that count for the mean in bold."""
    from rich.table import Table

    shown = Table(title=title)
    for column in ("task", "figure", "mean", "± runs", "± questions"):
        is_name = column in ("task", "figure")
        shown.add_column(column, justify="left" if is_name else "right", overflow="fold")
    for score in scores:
        cells = (
            score.task,
            score.metric,
            _written(score.mean),
            *map(_written, (score.run_std, score.stderr)),
        )
        shown.add_row(*cells, style="bold" if score.counts else "")
    if (mean := suite_mean(scores)) is not None:
        shown.add_section()
        shown.add_row("mean", "", _written(mean), "", "", style="bold")
    return shown


def _score(task: str, metric: str, runs: Sequence[Results], counts: bool) -> Score:
    values = tuple(float(run[task][metric]) for run in runs)
    stderr = _number(runs[0][task].get(_stderr_name(metric))) if len(runs) == 1 else None
    run_std = stdev(values) if len(values) > 1 else None
    return Score(task, metric, fmean(values), values, run_std, stderr, counts)


def _metrics(figures: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in figures.items()
        if "," in name and _STDERR not in name and _number(value) is not None
    ]


def _stderr_name(metric: str) -> str:
    figure, _, filter_name = metric.partition(",")
    return f"{figure}{_STDERR},{filter_name}"


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
