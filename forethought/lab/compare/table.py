"""The results of a comparison as tables: predictions, thoughts and what they cost, benchmarks, stages.

Several, because one does not fit a terminal of 80 columns without breaking its numbers. The price is that
an arm stands in all of them. Benchmarks and stages have a table if the plan has any; that of the stages
shows what of an arm's figures remains after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from forethought.lab.compare.results import STDERR, Results, Row, benchmarks, value
from forethought.lab.statistics import SeedInterval

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_PREDICTIONS = (
    ("think_accuracy", "think acc", ".3f"),
    ("no_think_accuracy", "plain acc", ".3f"),
    ("think_nll", "think NLL", ".3f"),
    ("marginal_nll", "marginal", ".3f"),
    ("no_think_nll", "plain NLL", ".3f"),
)
_THOUGHTS = (
    ("information_gain", "gain", ".3f"),
    ("elsewhere_information_gain", "elsewhere", ".3f"),
    ("thought_tokens_mean", "thought", ".1f"),
)


def tables_of(results: Results) -> Group:
    """Tables of one row per base, stage and arm, and one with a column per stage."""
    from rich.console import Group

    return Group(*_tables(results))


def _tables(results: Results) -> Iterator[Table]:
    predictions = _table(results, [title for _, title, _ in _PREDICTIONS], _predictions)
    predictions.title = f"{results['name']}: {_over(len(results['plan']['seeds']))}"
    predictions.caption = (
        "accuracy and NLL in nats of the next token after a thought, and without one (plain); "
        "marginal: by the thoughts' mean probability"
    )
    yield predictions
    costs = _table(
        results, [*(title for _, title, _ in _THOUGHTS), "tokens", "FLOPs", "seconds"], _costs
    )
    costs.caption = (
        "gain: in nats, elsewhere at unmarked positions; thought: its length in tokens; "
        "tokens: sampled and trained; FLOPs: with scoring; both for full rows"
    )
    yield costs
    if titles := benchmarks(results):
        accuracies = _table(results, list(titles.values()), lambda row: _accuracies(row, titles))
        accuracies.caption = (
            "accuracy by lm-evaluation-harness, plain and behind a thought; in brackets the standard error "
            "over questions"
        )
        yield accuracies
    if results["plan"]["stages"]:
        yield _by_stage(results)


def _by_stage(results: Results) -> Table:
    """The accuracies of every arm before the stages and after each of them."""
    from rich.table import Table

    stages = ["", *(stage["name"] for stage in results["plan"]["stages"])]
    table = Table("arm", title="by stage")
    table.columns[0].overflow = "fold"
    for stage in stages:
        table.add_column(f"after {stage}" if stage else "before", justify="right", overflow="fold")
    titles = {"think_accuracy": "accuracy after a thought"} | benchmarks(results)
    rows = {(row["base"], row["arm"], row["stage"]): row for row in results["rows"]}
    for base in dict.fromkeys(row["base"] for row in results["rows"]):
        for name, title in titles.items():
            table.add_section()
            table.add_row(f"[bold]from {base}: {title}[/bold]")
            for arm in results["plan"]["arms"]:
                found = [rows[base, arm["name"], stage] for stage in stages]
                table.add_row(found[0]["label"], *(_accuracy(row, name) for row in found))
    return table


def _table(results: Results, titles: Sequence[str], cells: Callable[[Row], list[str]]) -> Table:
    from rich.table import Table

    table = Table("arm")
    table.columns[0].overflow = "fold"  # never cut, at any width
    for title in titles:
        table.add_column(title, justify="right", overflow="fold")
    section = None
    for row in results["rows"]:
        if section != (section := (row["base"], row["stage"])):
            heading = f"from {row['base']}" + (f", after {row['stage']}" if row["stage"] else "")
            table.add_section()
            table.add_row(f"[bold]{heading}[/bold]")
        table.add_row(row["label"], *cells(row))
    return table


def _over(num_seeds: int) -> str:
    return f"means over {num_seeds} seeds, ± 95 % (Student's t)" if num_seeds > 1 else "one seed"


def _predictions(row: Row) -> list[str]:
    return [_cell(value(row, name), spec) for name, _, spec in _PREDICTIONS]


def _costs(row: Row) -> list[str]:
    thoughts = [_cell(value(row, name), spec) for name, _, spec in _THOUGHTS]
    tokens, flops, seconds = (value(row, name) for name in ("tokens", "flops", "seconds"))
    if tokens is None or flops is None or seconds is None:
        return thoughts
    return [*thoughts, f"{tokens.mean / 1e6:.2f}M", f"{flops.mean:.2e}", f"{seconds.mean:.0f}"]


def _accuracies(row: Row, names: Iterable[str]) -> list[str]:
    return [_accuracy(row, name) for name in names]


def _accuracy(row: Row, name: str) -> str:
    """Mean, interval over seeds if there are several, and standard error over questions if known."""
    stderr = value(row, name + STDERR)
    return _cell(value(row, name), ".3f") + (f" ({stderr.mean:.3f})" if stderr else "")


def _cell(found: SeedInterval | None, spec: str) -> str:
    return "failed" if found is None else format(found, spec)
