"""``forethought compare``: arms x seeds x bases with equal budgets, in one command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from forethought.lab.compare.plan import ComparisonPlan
    from forethought.lab.compare.schedule import TrialOutcome
    from forethought.lab.compare.trial import Trial

_FILE_WIDTH = 180  # columns of the table when stdout is not a terminal


def compare(
    config: Path = typer.Argument(..., help="The comparison plan, a TOML file.", metavar="CONFIG"),
    overrides: list[str] = typer.Argument(
        None,
        help="Overrides of plan keys, such as seeds=[0] or directory=runs/mine.",
        metavar="KEY=VALUE",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything, list the runs, stop."),
) -> None:
    """Compare objectives: every arm from every base with every seed, under one measurement.

    Runs that finished earlier with the same settings are not repeated. Results: a table, and
    DIRECTORY/compare.json and compare.png. Exits with status 1 if a run failed.
    """
    from rich.console import Console

    from forethought.lab.compare.downstream import check_files
    from forethought.lab.compare.pinning import pinned_plan
    from forethought.lab.compare.plan import load_plan

    plan = load_plan(config, tuple(overrides or ()))
    check_files(plan)
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    if dry_run:
        _list(plan)
        return
    plan.directory.mkdir(parents=True, exist_ok=True)
    if plan.demo_corpus:
        _write_demo_corpus(plan)
    plan = pinned_plan(plan)
    outcomes = asyncio.run(_run(plan, console))
    _report(plan, outcomes, console)
    if any(outcome.error for outcome in outcomes):
        sys.exit(1)


def _list(plan: ComparisonPlan) -> None:
    for base in plan.bases:
        for arm in plan.arms:
            seeds = f"seeds {', '.join(map(str, plan.seeds))}" if arm.trains else "unchanged"
            match = f", equal {arm.match} to {plan.reference}" if arm.match else ""
            typer.echo(f"{base.name}/{arm.name}: {seeds}{match}")
    stages = ", ".join(stage.name for stage in plan.stages)
    typer.echo(f"after each arm: {stages or 'nothing'}; {plan.processes} concurrent processes")
    for entry in plan.downstream:
        of = f"{entry.limit:,} questions" if entry.limit else "all questions"
        typer.echo(f"behind each of them: {entry.suite}, {of} of {entry.data or 'the hub'}")


def _write_demo_corpus(plan: ComparisonPlan) -> None:
    from forethought.lab.demo.comparison import write_corpora
    from forethought.process import quiet_libraries

    quiet_libraries()
    write_corpora(plan.corpus)


async def _run(plan: ComparisonPlan, console: Console) -> list[TrialOutcome]:
    """Run all trials under a progress bar that names the active ones; print a line per measured trial."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from forethought.lab.compare.schedule import Schedule

    columns = (
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        overall = bar.add_task("", total=plan.num_trials)

        def active(trials: Sequence[Trial]) -> None:
            bar.update(overall, description=", ".join(map(str, trials)))

        def measured(outcome: TrialOutcome) -> None:
            bar.advance(overall)
            bar.console.print(_line(outcome), highlight=False, soft_wrap=True)

        return await Schedule(plan, measured, active).run()


def _line(outcome: TrialOutcome) -> str:
    if outcome.error is not None:
        return f"[red]{outcome.trial} failed:[/red] {outcome.error}"
    answers = outcome.figures["answers"]
    benchmarks = "".join(
        f", {suite} {modes.get('think', modes['plain'])['accuracy']:.3f}"
        for suite, modes in outcome.figures["downstream"].items()
    )
    return (
        f"{outcome.trial}: accuracy {answers['think_accuracy']:.3f} after a thought, gain "
        f"{answers['information_gain']:.3f} nats{benchmarks}, run took {outcome.seconds:.0f} s"
    )


def _report(plan: ComparisonPlan, outcomes: Sequence[TrialOutcome], console: Console) -> None:
    from forethought.lab.compare.figure import draw_comparison
    from forethought.lab.compare.results import results_of, write_results
    from forethought.lab.compare.table import tables_of

    results = results_of(plan, outcomes)
    file, figure = plan.directory / "compare.json", plan.directory / "compare.png"
    write_results(results, file)
    draw_comparison(results, figure)
    console.print(tables_of(results))
    console.print(f"results  {file}, {figure}", soft_wrap=True)
