"""``forethought report``: one HTML page about one or several runs, from their directories.

Design: like every command, this module loads nothing heavy before it is called. The page of one run is
written to its directory, so that it moves with the run; a page of several runs is written to the current
directory.
"""

from __future__ import annotations

from pathlib import Path

import typer

_RUNS = typer.Argument(metavar="RUN...", help="Run directories, shown side by side in this order.")
_OUT = typer.Option(
    None,
    "--out",
    metavar="FILE",
    help="Output file; default: RUN/report.html, or ./report.html for several runs.",
)


def report(runs: list[Path] = _RUNS, out: Path | None = _OUT) -> None:
    """Report on runs: curves, alarms, data flow, settings and sample thoughts, in one HTML file.

    The file is self-contained: it needs no network and no server. The run may still be in progress or
    have crashed; the page lists what is missing.
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
        alarm_note = f", alarms: {alarms}" if alarms else ""
        typer.echo(f"{record.label}: {record.status}, {record.last_step} steps{alarm_note}")
        for sentence in filter(None, (record.failure, *record.missing)):
            typer.echo(f"  {sentence}")
    typer.echo(f"report  {page.resolve()}")
