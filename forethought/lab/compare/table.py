"""The results of a comparison as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forethought.lab.compare.results import Results, Row, value
from forethought.lab.statistics import SeedInterval

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = (
    ("think_accuracy", "think acc", ".3f"),
    ("no_think_accuracy", "plain acc", ".3f"),
    ("think_nll", "think NLL", ".3f"),
    ("marginal_nll", "marginal", ".3f"),
    ("no_think_nll", "plain NLL", ".3f"),
    ("information_gain", "gain", ".3f"),
    ("elsewhere_information_gain", "gain elsewhere", ".3f"),
    ("thought_tokens_mean", "thought", ".1f"),
)


def table_of(results: Results) -> Table:
    """One row per base, stage and arm."""
    from rich.table import Table

    num_seeds = len(results["plan"]["seeds"])
    table = Table(
        title=f"{results['name']}: {_over(num_seeds)}",
        caption="accuracy and NLL in nats of the next token after a thought, and without one (plain); "
        "marginal: by the thoughts' mean probability; elsewhere: at unmarked positions; thought: "
        "its length in tokens; tokens: sampled and trained; FLOPs: with scoring; both for full rows",
    )
    table.add_column("arm", overflow="fold")  # never cut, at any width
    for _, title, _ in _COLUMNS:
        table.add_column(title, justify="right", overflow="fold")
    for title in ("tokens", "FLOPs", "seconds"):
        table.add_column(title, justify="right", overflow="fold")
    section = None
    for row in results["rows"]:
        if section != (section := (row["base"], row["stage"])):
            heading = f"from {row['base']}" + (f", after {row['stage']}" if row["stage"] else "")
            table.add_section()
            table.add_row(f"[bold]{heading}[/bold]")
        table.add_row(
            row["label"], *(_cell(value(row, n), spec) for n, _, spec in _COLUMNS), *_costs(row)
        )
    return table


def _over(num_seeds: int) -> str:
    return f"means over {num_seeds} seeds, ± 95 % (Student's t)" if num_seeds > 1 else "one seed"


def _cell(found: SeedInterval | None, spec: str) -> str:
    return "failed" if found is None else format(found, spec)


def _costs(row: Row) -> tuple[str, str, str]:
    tokens, flops, seconds = (value(row, name) for name in ("tokens", "flops", "seconds"))
    if tokens is None or flops is None or seconds is None:
        return ("", "", "")
    return (f"{tokens.mean / 1e6:.2f}M", f"{flops.mean:.2e}", f"{seconds.mean:.0f}")
