"""The demo's table on a terminal of 80 columns, which is also the width of a pipe."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from forethought.lab.demo.report import ARMS, table

KEYS = (
    "think_accuracy", "no_think_accuracy", "think_nll", "no_think_nll", "information_gain",
    "thought_tokens_mean", "truncated_share",
)  # fmt: skip


def test_arms_and_numbers_are_whole_at_80_columns() -> None:
    drawn = StringIO()
    values = {key: -(1.001 + number) for number, key in enumerate(KEYS)}
    Console(width=80, file=drawn).print(table(dict.fromkeys(ARMS, values)))
    rows = [line.split("│") for line in drawn.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    assert cells == [[arm, *(f"{value:.3f}" for value in values.values())] for arm in ARMS]
