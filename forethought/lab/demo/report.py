"""The demo's results: a table, ``report.json`` and ``report.png``.

Design: the JSON is the result; table and figure are derived from it and from the arms' metrics, so that
everything shown is also on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.run.directory import RunDirectory

if TYPE_CHECKING:
    from rich.table import Table

Report = dict[str, dict[str, Any]]

ARMS = ("base", "cpt", "rlp", "rlp_uniform")
_COLUMNS = (
    ("think_accuracy", "think\nacc"),
    ("no_think_accuracy", "plain\nacc"),
    ("think_nll", "think\nNLL"),
    ("no_think_nll", "plain\nNLL"),
    ("information_gain", "gain"),
    ("thought_tokens_mean", "tokens"),
    ("truncated_share", "cut"),
)
_LABELS = {"rlp": "rlp: at answers", "rlp_uniform": "rlp_uniform: at any token"}
_RUN_KEYS = (
    "steps",
    "policy_version",
    "tasks_admitted",
    "tasks_trained",
    "tasks_failed",
    "lost",
    "duplicated",
    "seconds",
)


def run_figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The run section of ``report.json``; ``replicas`` are the final policy versions by replica."""
    replicas = {
        replica_id: replica["serving"]["policy"][1]
        for replica_id, replica in summary["replicas"].items()
    }
    return {key: summary[key] for key in _RUN_KEYS} | {"replicas": replicas}


def write_report(report: Report, path: Path) -> None:
    """Write ``report.json``."""
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def table(report: Report) -> Table:
    """The arms, one row each."""
    from rich.table import Table

    drawn = Table(
        title="512 held-out documents x 8 thoughts, at the answer",
        caption="accuracy and NLL of the answer after a thought and without (plain); gain in nats; "
        "thought length in tokens, and share of thoughts truncated at the budget",
    )
    drawn.add_column("arm", overflow="fold")
    for _, title in _COLUMNS:
        drawn.add_column(title, justify="right", overflow="fold")
    for arm in ARMS:
        drawn.add_row(arm, *(f"{report[arm][key]:.3f}" for key, _ in _COLUMNS))
    return drawn


def draw_demo(report: Report, runs: Mapping[str, Path], path: Path) -> None:
    """Write ``report.png``: the gain during training, and the final accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (gains, bars) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for arm, directory in runs.items():
        rows = RunDirectory(directory).read_metrics()
        gains.plot(*_curve(rows, "information_gain"), label=_LABELS.get(arm, arm))
    gains.set(
        title="Information gain of a thought during training",
        xlabel="optimizer step",
        ylabel="information gain over the baseline (nats)",
    )
    gains.axhline(0, color="grey", linewidth=0.8)
    gains.legend(loc="center right")
    gains.grid(alpha=0.3)
    _accuracy_bars(bars, report)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    known = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in known], [value for _, value in known]


def _accuracy_bars(axes: Any, report: Report) -> None:
    positions = range(len(ARMS))
    for offset, key, label in (
        (-0.2, "no_think_accuracy", "without"),
        (0.2, "think_accuracy", "after thinking"),
    ):
        heights = [report[arm][key] for arm in ARMS]
        drawn = axes.bar([position + offset for position in positions], heights, 0.4, label=label)
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    axes.set(title="Next-token accuracy at held-out answers", ylim=(0, 1.12))
    axes.set_xticks(list(positions), ARMS)
    axes.legend(loc="upper left")
    axes.grid(axis="y", alpha=0.3)
