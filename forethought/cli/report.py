"""``forethought report``: one HTML page about one or several runs, from their directories.

Design: like every command, this module loads nothing heavy before it is called. The page of one run goes
into its directory, where it travels along; a page of several belongs to none of them and goes here.
"""

from __future__ import annotations

from pathlib import Path

import typer

_RUNS = typer.Argument(metavar="RUN...", help="Run directories, side by side in this order.")
_OUT = typer.Option(
    None,
    "--out",
    metavar="FILE",
    help="Where the page goes; by default RUN/report.html, of several runs ./report.html.",
)


def report(runs: list[Path] = _RUNS, out: Path | None = _OUT) -> None:
    """Show what runs did: curves, alarms, flow of work, settings and sample thoughts, in one HTML file.

    The file needs no network and no server: open it, or send it. A run may still be going on, or have
    crashed: the page says what is missing.
    """
    from rich.console import Console

    from forethought.lab.report import read_runs, write_page
    from forethought.process import quiet_libraries

    quiet_libraries()
    page = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    console = Console(stderr=True)
    with console.status("reading runs") as status:
        records = read_runs(runs)
        status.update("drawing")
        write_page(records, page)
    for record in records:
        alarms = ", ".join(str(alarm["name"]) for alarm in record.review.alarms)
        heard = f", alarms: {alarms}" if alarms else ""
        typer.echo(f"{record.label}: {record.status}, {record.last_step} steps{heard}")
        for sentence in record.missing:
            typer.echo(f"  {sentence}")
    typer.echo(f"report  {page.resolve()}")
