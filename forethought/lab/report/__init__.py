"""A page about one or several runs: one self-contained HTML file generated from their run directories.

    RunDirectory -> RunRecord (record.py) -> curves, tables, samples -> page.html.j2 -> FILE

Design: everything is read from the run directory, so that a page can be generated for a running,
finished, crashed or empty run, on any machine that has the directory. Missing data is reported and never
an error. The page needs no network and runs no script; the price is that it does not follow a run:
regenerate it.
"""

from forethought.lab.report.page import write_page
from forethought.lab.report.record import RunRecord, read_runs

__all__ = ["RunRecord", "read_runs", "write_page"]
