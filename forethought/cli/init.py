"""``forethought init``: a folder with everything that a first run needs.

Design: every part is written to a temporary name and renamed when complete, so that an interrupted init can
be completed, and existing files are never overwritten. The price is that a part written by an older version
stays until it is removed by hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import typer

from forethought.errors import InvalidInput
from forethought.run.files import rename_whole


def init(
    directory: Path = typer.Argument(..., metavar="DIR", help="Target folder; created if missing."),
    if_missing: bool = typer.Option(
        False,
        "--if-missing",
        help="Keep existing parts and write only the missing ones; for scripts.",
    ),
) -> None:
    """Write a small base model, a corpus and a commented run.toml that uses them into DIR.

    They are the demo's: the run teaches a 0.12M-parameter model to think, in minutes on two cores. Existing
    files are never overwritten.
    """
    from forethought.lab.demo.first_run import CONFIG, parts

    written = parts(directory)
    there = [name for name in written if (directory / name).exists()]
    if there and not if_missing:
        raise InvalidInput(
            f"{directory} already contains {', '.join(there)}; expected a folder without them, because "
            "init overwrites nothing: choose another folder, or add --if-missing to write only the "
            "missing parts"
        )
    for name in (name for name in written if name not in there):
        _write_whole(directory / name, written[name])
    typer.echo(f"to run it     forethought up {directory / CONFIG}")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder under a temporary name and rename it when complete.

    Raises:
        InvalidInput: the folder is not writable.
    """
    unfinished = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        write(unfinished)
        rename_whole(unfinished, path)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {path} ({error.strerror or error}); expected a writable folder with a few "
            "megabytes free"
        ) from error
    typer.echo(f"{'wrote':<13} {path}")
