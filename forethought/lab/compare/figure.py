"""The results of a comparison as a figure: a panel per base and metric, a mark per seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forethought.lab.compare.results import Results, Row, benchmarks, value

_PANELS = (
    ("think_accuracy", "accuracy after a thought"),
    ("information_gain", "information gain (nats)"),
    ("thought_tokens_mean", "thought length (tokens)"),
)


def draw_comparison(results: Results, path: Path) -> None:
    """Write the figure as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = [*_PANELS, *((name, f"accuracy, {t}") for name, t in benchmarks(results).items())]
    sections = list(dict.fromkeys((row["base"], row["stage"]) for row in results["rows"]))
    figure, axes = pyplot.subplots(
        len(sections), len(titles), squeeze=False, sharey="row", layout="constrained",
        figsize=(4.2 * len(titles), 0.9 + 2.8 * len(sections)),
    )  # fmt: skip
    for (base, stage), panels in zip(sections, axes, strict=True):
        rows = [row for row in results["rows"] if (row["base"], row["stage"]) == (base, stage)]
        for panel, (name, title) in zip(panels, titles, strict=True):
            _panel(panel, rows, results["trials"], name)
            panel.set_xlabel(title)
        panels[0].set_title(f"from {base}" + (f", after {stage}" if stage else ""), loc="left")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _panel(axes: Any, rows: Sequence[Row], trials: Sequence[Row], name: str) -> None:
    for index, row in enumerate(rows):
        mean = value(row, name)
        if mean is None:
            continue
        color = f"C{index % 10}"
        axes.barh(index, mean.mean, height=0.62, color=color, alpha=0.35)
        if mean.half_width is not None:
            axes.errorbar(mean.mean, index, xerr=mean.half_width, color=color, capsize=3)
        seeds = _of_row(row, trials, name)
        axes.scatter(seeds, [index] * len(seeds), color=color, s=14, zorder=3)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    axes.grid(axis="x", alpha=0.3)


def _of_row(row: Row, trials: Sequence[Row], name: str) -> list[float]:
    same = ("base", "arm", "stage")
    return [
        trial["values"][name]
        for trial in trials
        if trial["values"] and all(trial[key] == row[key] for key in same)
    ]
