"""Curves as inline SVG with the page's colours and fonts.

Design: matplotlib lays out the figure and the stylesheet colours it: placeholder colours become CSS
variables, and text stays text. So one SVG suits light and dark mode, and its text is searchable. The
price is a post-processing pass that depends on matplotlib's SVG output.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from forethought.lab.report.curves import Curve, Points, points, thinned
from forethought.lab.report.record import RunRecord

MAX_RUNS = 8
"""More colours than these are not distinguishable."""

_INK, _GRID, _ALARM = "#01ff01", "#01ff02", "#01ff03"
_PAINT = {_INK: "var(--muted)", _GRID: "var(--grid)", _ALARM: "var(--alarm)"} | {
    f"#01fe0{i}": f"var(--run-{i})" for i in range(MAX_RUNS)
}
_SMOOTHED_FROM = 40  # points; shorter series are not smoothed
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), _GRID),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor", "axes.labelcolor"), _INK),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": False,
}


def draw_curves(curve: Curve, runs: Sequence[RunRecord]) -> str:
    """One figure with every run in its colour, as an ``<svg>`` element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": curve.key}):
        figure = Figure(figsize=(4.8, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(runs):
            for key in curve.keys:
                _line(axes, points(run.rows, key), f"#01fe0{index}", dashed=key != curve.key)
        _finish(axes, curve)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(buffer.getvalue(), curve.title)


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _line(axes: Any, series: Points, colour: str, dashed: bool) -> None:
    steps, values = thinned(series)
    style = (0, (4, 2)) if dashed else "-"
    if len(steps) < _SMOOTHED_FROM:
        marker = "o" if len(steps) < 25 else ""
        axes.plot(
            steps, values, color=colour, linestyle=style, linewidth=1.6, marker=marker, ms=2.5
        )
        return
    if not dashed:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, _smooth(values), color=colour, linestyle=style, linewidth=1.7)


def _smooth(values: list[float]) -> list[float]:
    """Centred moving average over a twentieth of the points."""
    reach = max(1, len(values) // 40)
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _finish(axes: Any, curve: Curve) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(length=0)
    low, high = axes.get_ylim()
    if curve.log and low > 0 and high / max(low, 1e-30) > 20:
        axes.set_yscale("log")
    elif curve.share:
        top = max(0.1, min(1.02, high))
        axes.set_ylim(-0.02 * top, top)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        if high - low < 1e-3 * max(abs(high), 1e-9):  # constant up to rounding
            middle = (high + low) / 2
            axes.set_ylim(middle - max(0.5, abs(middle) / 2), middle + max(0.5, abs(middle) / 2))
    low, high = axes.get_ylim()
    if low < 0 < high and not curve.share:
        axes.axhline(0, color=_INK, linewidth=0.8)
    if curve.limit is not None and low < curve.limit < high:
        axes.axhline(curve.limit, color=_ALARM, linewidth=1, linestyle=(0, (1, 2)))


def _inline(svg: str, title: str) -> str:
    """Only the ``<svg>`` element, coloured by CSS variables, with ids unique on the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'^<svg[^>]*viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" '
                 rf'aria-label="{title}">', svg)  # fmt: skip
    svg = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.S
    )
    svg = re.sub(
        r' id="[a-z]+[a-z0-9.]*_\d+"', "", svg
    )  # groups; clip paths and markers keep theirs
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for placeholder, colour in _PAINT.items():
        svg = svg.replace(placeholder, colour)
    return re.sub(r"\n\s*", "\n", svg)
