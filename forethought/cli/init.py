"""``forethought init``: a folder with everything that a first run needs.

Design: every part appears under its name only once it is whole, so that one that was interrupted can be
finished, and nothing that exists is ever written over. The price is that a part of an older version
stays until it is removed by hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import typer

from forethought.errors import InvalidInput


def init(
    directory: Path = typer.Argument(..., metavar="DIR", help="Made if it is not there."),
    if_missing: bool = typer.Option(
        False, "--if-missing", help="Leave what is there alone and write the rest; for scripts."
    ),
) -> None:
    """Write a small base model, a corpus and a commented run.toml that uses them into DIR.

    They are the demo's: the run that they make teaches a model of 0.12M parameters to think, in minutes
    on two cores. Nothing that exists is written over.
    """
    from forethought.lab.demo.first_run import CONFIG, parts

    written = parts(directory)
    there = [name for name in written if (directory / name).exists()]
    if there and not if_missing:
        raise InvalidInput(
            f"{directory} already has {', '.join(there)}; expected a folder without, because nothing is "
            "written over: name another, or give --if-missing to write only what is not there"
        )
    for name in (name for name in written if name not in there):
        _write_whole(directory / name, written[name])
    typer.echo(f"to run it     forethought up {directory / CONFIG}")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder beside its place and move it there.

    Raises:
        InvalidInput: the folder cannot be written to.
    """
    unfinished = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        write(unfinished)
        unfinished.rename(path)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {path} ({error.strerror or error}); expected a folder that can be written "
            "to, with a few megabytes free"
        ) from error
    typer.echo(f"{'wrote':<13} {path}")
