"""A page about one or several runs: one self-contained HTML file made from their run directories.

    RunDirectory -> RunRecord (record.py) -> curves, tables, samples -> page.html.j2 -> FILE

Design: everything comes from what a run leaves on disk, so that a page can be made of a run that is alive,
finished, crashed or empty, on any machine that has the directory. Whatever is missing is said and nothing
fails for it. The page asks nothing of the network and runs no script; the price is that it does not follow
a run: make it again.
"""

from forethought.lab.report.page import write_page
from forethought.lab.report.record import RunRecord, read_runs

__all__ = ["RunRecord", "read_runs", "write_page"]
