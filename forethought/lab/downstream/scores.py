"""The scores of an evaluation: a mean over runs per metric, the suite's mean, a table, JSON.

Design: several runs report the spread between runs, a single run the harness's standard error over
questions; these are different quantities with separate names. The price is a column that is empty in
either case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from forethought.lab.downstream.harness import Evaluated, HarnessOptions, Results
from forethought.lab.downstream.suites import Suite

if TYPE_CHECKING:
    from rich.table import Table

_STDERR = "_stderr"


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of a task: mean over runs, standard deviation of runs, standard error over questions.

    Example:
        ``Score("gsm8k", "exact_match,flexible-extract", 0.745, runs=(0.74, 0.75), run_std=0.007)``
    """

    task: str
    metric: str
    mean: float
    runs: tuple[float, ...]
    run_std: float | None = None
    stderr: float | None = None
    counts: bool = False  # towards the suite's mean


def scores_of(suite: Suite, runs: Sequence[Results]) -> list[Score]:
    """Every metric of every task and group; those that count towards the suite's mean are marked."""
    counting = {(scored.task, scored.metric) for scored in suite.tasks if suite.has_mean}
    return [
        _score(task, metric, runs, (task, metric) in counting)
        for task in runs[0]
        for metric in _metrics(runs[0][task])
    ]


def suite_mean(scores: Iterable[Score]) -> float | None:
    """The mean of the metrics that count, averaged over tasks as in the papers; None if there are none."""
    counting = [score.mean for score in scores if score.counts]
    return fmean(counting) if counting else None


def report(
    model: str, name: str, suite: Suite, options: HarnessOptions, evaluated: Evaluated
) -> dict[str, Any]:
    """Settings, versions, numbers of questions and scores as a JSON-serialisable dictionary."""
    from importlib.metadata import version

    scores = scores_of(suite, evaluated.runs)
    return {
        "model": model,
        "suite": name,
        "settings": asdict(suite) | asdict(options),
        "num_questions": {
            task: {"asked": asked, "in_data": in_data}
            for task, (asked, in_data) in evaluated.num_questions.items()
        },
        "versions": {package: version(package) for package in ("lm_eval", "transformers", "torch")},
        "mean": suite_mean(scores),
        "scores": [asdict(score) for score in scores],
    }


def table(title: str, suite: Suite, evaluated: Evaluated, data: str = "") -> Table:
    """The scores as a terminal table; those that count towards the mean in bold."""
    from rich.table import Table

    scores = scores_of(suite, evaluated.runs)
    shown = Table(title=title, caption=_questions(evaluated, data))
    for column in ("task", "metric", "mean", "± runs", "± questions"):
        is_name = column in ("task", "metric")
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


def _questions(evaluated: Evaluated, data: str) -> str:
    """The numbers of questions: ``50 of the 1,319 questions of gsm8k-test.jsonl``."""
    of_data = f" of {Path(data).name}" if data else ""
    counts = dict.fromkeys(evaluated.num_questions.values())  # tasks of one data set have the same
    return "; ".join(
        f"{asked:,} of the {in_data:,} questions{of_data}" for asked, in_data in counts
    )


def _score(task: str, metric: str, runs: Sequence[Results], counts: bool) -> Score:
    values = tuple(float(run[task][metric]) for run in runs)
    stderr = _number(runs[0][task].get(_stderr_name(metric))) if len(runs) == 1 else None
    run_std = stdev(values) if len(values) > 1 else None
    return Score(task, metric, fmean(values), values, run_std, stderr, counts)


def _metrics(metrics: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in metrics.items()
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
