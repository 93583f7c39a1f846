"""The page: the records of the runs, rendered with one HTML template.

Design: jinja2 renders with autoescaping enabled; only the figures are passed as markup, and they contain
nothing from a run except numbers. Undefined names are errors, so that a mistake in the template is not a
silent gap. The price is a dependency on jinja2, which only the ``local`` extra installs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought import __version__
from forethought.errors import InvalidInput
from forethought.lab.report.curves import CURVES, Curve, ends, is_known, mean_phases, points
from forethought.lab.report.drawing import MAX_RUNS, draw_curves
from forethought.lab.report.evaluation import EvaluationTable, evaluation_tables
from forethought.lab.report.facts import (
    CheckpointRow,
    ReplicaRow,
    checkpoint_rows,
    identity_rows,
    replica_rows,
    work_rows,
)
from forethought.lab.report.numbers import signed
from forethought.lab.report.record import RunRecord
from forethought.lab.report.samples import ShownSample, samples_of
from forethought.lab.report.settings import setting_rows


@dataclass(frozen=True, slots=True)
class ShownCurve:
    """A figure and its legend: by run index, the means of the first and the last tenth of the steps.

    Example:
        ``ShownCurve(curve, Markup("<svg …>"), ((0, "0.28 → 0.91"),))``
    """

    curve: Curve
    svg: Any
    trends: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of the mean step.

    Example:
        ``Phase("learning", "0.21 s", percent=41.0)``
    """

    name: str
    seconds: str
    percent: float


@dataclass(frozen=True, slots=True)
class ShownRun:
    """The part of the page about a single run; ``index`` selects its colour.

    Example:
        ``ShownRun.of(0, record).phases``
    """

    index: int
    record: RunRecord
    phases: list[Phase]
    failures: list[tuple[str, int]]
    replicas: list[ReplicaRow]
    checkpoints: list[CheckpointRow]
    evaluations: list[EvaluationTable]
    samples: list[ShownSample]

    @classmethod
    def of(cls, index: int, record: RunRecord) -> ShownRun:
        """Everything shown for a run, apart from its column in the shared tables."""
        return cls(
            index,
            record,
            _phases(record),
            _failures(record),
            replica_rows(record),
            checkpoint_rows(record),
            evaluation_tables(record.evaluation),
            samples_of(record),
        )


def write_page(runs: Sequence[RunRecord], out: Path) -> None:
    """Write the page with the runs side by side.

    Raises:
        InvalidInput: there are more runs than colours, or the file cannot be written.
    """
    if len(runs) > MAX_RUNS:
        raise InvalidInput(
            f"got {len(runs)} runs; expected at most {MAX_RUNS}, because more colours are not "
            "distinguishable: report on fewer runs"
        )
    html = _render(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInput(f"cannot write {out}: {error.strerror}; choose another --out") from error


def _render(runs: Sequence[RunRecord]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("forethought.lab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = [curve for curve in CURVES if is_known(curve, runs)]
    return environment.get_template("page.html.j2").render(
        runs=[ShownRun.of(index, run) for index, run in enumerate(runs)],
        title=" · ".join(run.label for run in runs),
        made=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        version=__version__,
        identity=identity_rows(runs),
        settings=setting_rows(runs),
        curves=[_shown(curve, runs) for curve in known],
        unknown=[curve.title for curve in CURVES if curve not in known],
        work=work_rows(runs),
    )


def _shown(curve: Curve, runs: Sequence[RunRecord]) -> ShownCurve:
    from markupsafe import Markup

    found = [ends(points(run.rows, curve.key)[1]) for run in runs]
    trends = tuple((i, _trend(pair, curve.share)) for i, pair in enumerate(found) if pair)
    return ShownCurve(curve, Markup(draw_curves(curve, runs)), trends)


def _trend(found: tuple[float, float], share: bool) -> str:
    first, last = (f"{value:.0%}" if share else signed(value) for value in found)
    return first if first == last else f"{first} → {last}"


def _phases(run: RunRecord) -> list[Phase]:
    means = mean_phases(run.rows)
    whole_s = sum(means.values())
    if not whole_s:
        return []
    return [Phase(n, f"{signed(s)} s", 100 * s / whole_s) for n, s in means.items() if s]


_MOST_REASONS = 10


def _failures(run: RunRecord) -> list[tuple[str, int]]:
    """The most common reasons, and the count of all others."""
    ordered = sorted(run.review.failures.items(), key=lambda item: -item[1])
    rest = sum(count for _, count in ordered[_MOST_REASONS:])
    return ordered[:_MOST_REASONS] + ([("other reasons", rest)] if rest else [])
