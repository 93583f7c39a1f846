"""``eval.png``: for a series, accuracy over compute with the fitted laws; otherwise bars by split.

Below them the gain by quartiles.

Design: drawn from the report alone, so that an old eval.json can be redrawn.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from forethought.lab.evaluation.quartiles import MEASURES, PARTS

_LEVELS = ("easy", "medium", "hard", "marked")


def draw_evaluation(report: dict[str, Any], path: Path) -> None:
    """Write the figure of a report."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = _quartiles(report)
    num_rows = 2 if tables else 1
    figure, axes = pyplot.subplots(
        num_rows, 2, figsize=(12, 4.6 * num_rows), layout="constrained", squeeze=False
    )
    left, right = axes[0]
    if report["laws"]:
        _accuracy_curves(left, report)
        _gain_curves(right, report)
    else:
        _accuracy_bars(left, report)
        _gain_bars(right, report)
    for below, (split, of_split) in zip(axes[-1], tables.items(), strict=False):
        _quartile_bars(below, split, of_split)
    if len(tables) == 1:
        axes[-1][1].axis("off")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _accuracy_curves(axes: Any, report: dict[str, Any]) -> None:
    metric = report["accuracy"]
    trained = [c for c in report["checkpoints"] if c["compute"]]
    for number, name in enumerate(name for name in _LEVELS if name in report["splits"]):
        colour = f"C{number}"
        points = [(c["compute"], c["splits"][name][metric]) for c in trained]
        law = report["laws"][name][metric]
        label = name
        if "reason" not in law and points:
            compute = np.geomspace(points[0][0], points[-1][0], 100)
            fitted = law["amplitude"] / compute ** law["exponent"] + law["limit"]
            axes.plot(compute, fitted, color=colour, linewidth=1)
            label = f"{name}: P* {law['limit']:.2f}, R² {law['r_squared']:.3f}"
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4, label=label)
    axes.set(
        xscale="log",
        xlabel=f"training compute ({report['compute_unit']})",
        ylabel=metric.replace("_", " "),
        title="P(C) = A / C^alpha + P*",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _gain_curves(axes: Any, report: dict[str, Any]) -> None:
    steps = [checkpoint["step"] for checkpoint in report["checkpoints"]]
    for name in report["splits"]:
        of = [checkpoint["splits"][name] for checkpoint in report["checkpoints"]]
        axes.plot(steps, [figures["information_gain"] for figures in of], label=name)
        low, high = ([f[f"information_gain_{end}"] for f in of] for end in ("low", "high"))
        axes.fill_between(steps, low, high, alpha=0.15)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(
        xlabel="optimizer step",
        ylabel="information gain (nats)",
        title="Information gain of a thought, 95 % intervals over positions",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _accuracy_bars(axes: Any, report: dict[str, Any]) -> None:
    """Bars: accuracy after a thought, per checkpoint; lines across them: without a thought."""
    for offset, width, checkpoint in _side_by_side(report):
        of = checkpoint["splits"].values()
        positions = np.arange(len(of)) + offset
        heights = [figures["think_accuracy"] for figures in of]
        axes.bar(positions, heights, width, label=checkpoint["label"])
        plain = [figures["no_think_accuracy"] for figures in of]
        axes.hlines(
            plain, positions - width / 2, positions + width / 2, color="black", linewidth=1.5
        )
    axes.set(title="greedy accuracy after a thought (line: without)", ylim=(0, 1.05))
    _finish_bars(axes, report)


def _gain_bars(axes: Any, report: dict[str, Any]) -> None:
    for offset, width, checkpoint in _side_by_side(report):
        of = checkpoint["splits"].values()
        means, errors = _gains(of)
        axes.bar(np.arange(len(of)) + offset, means, width, yerr=errors, label=checkpoint["label"])
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(title="information gain (nats), 95 % intervals over positions")
    _finish_bars(axes, report)


def _gains(of: Collection[dict[str, Any]]) -> tuple[Any, Any]:
    """Mean gains, and the distances to the ends of their intervals. Shapes [n], [2, n]."""
    means = np.array([figures["information_gain"] for figures in of])
    ends = [[figures[f"information_gain_{end}"] for figures in of] for end in ("low", "high")]
    return means, np.abs(np.array(ends) - means)


def _quartiles(report: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The quartiles by split and checkpoint; of a series, its first and last checkpoint."""
    checkpoints = report["checkpoints"]
    shown = (checkpoints[0], checkpoints[-1]) if report["laws"] else checkpoints
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for checkpoint in shown:
        for table in checkpoint.get("quartiles", ()):
            found.setdefault(table["of"], {}).setdefault(checkpoint["label"], []).append(table)
    return found


def _quartile_bars(axes: Any, split: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    """The gain by quartiles: a group of bars per measure, ascending, one bar per checkpoint."""
    places = [(measure, part) for measure in MEASURES for part in PARTS]
    width = 0.8 / len(tables)
    for number, (label, of_checkpoint) in enumerate(tables.items()):
        parts = {
            (table["by"], part): figures
            for table in of_checkpoint
            for part, figures in table["splits"].items()
        }
        x = [i for i, place in enumerate(places) if place in parts]
        of = [parts[places[i]] for i in x]
        offset, (means, errors) = number * width - 0.4 + width / 2, _gains(of)
        axes.bar(np.array(x) + offset, means, width, yerr=errors, label=label)
    axes.axhline(0, color="grey", linewidth=0.8)
    names = [f"{part}\n{measure}" if part == PARTS[0] else part for measure, part in places]
    axes.set_xticks(range(len(places)), names, fontsize=7)
    axes.set(title=f"gain at {split} positions (nats), by quartiles of three measures")
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)


def _side_by_side(report: dict[str, Any]) -> list[tuple[float, float, dict[str, Any]]]:
    """The offset and width of each checkpoint's bars."""
    checkpoints = report["checkpoints"]
    width = 0.8 / len(checkpoints)
    return [(i * width - 0.4 + width / 2, width, c) for i, c in enumerate(checkpoints)]


def _finish_bars(axes: Any, report: dict[str, Any]) -> None:
    axes.set_xticks(range(len(report["splits"])), list(report["splits"]))
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
