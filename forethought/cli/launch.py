"""Words: what a user typed, and what a process is started with.

Design: processes are started as ``python -P -m MODULE``. ``-P`` keeps the current directory out of
the import path: people run this inside projects that have a ``services`` or ``trainer`` folder of
their own, and would otherwise start that. The price is that an objective of one's own must be
installed or on ``PYTHONPATH``; lying in the current directory is not enough.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from forethought.errors import InvalidInput

CONFIG_ARGUMENT = typer.Argument(None, metavar="CONFIG", help="A TOML file; defaults hold without.")
OVERRIDES_ARGUMENT = typer.Argument(
    None, metavar="section.key=value", help="Settings that win over file and environment."
)


def examples(*commands: str) -> str:
    """The epilog of a command's help."""
    lines = "\n\n".join(f"  [cyan]{command}[/cyan]" for command in commands)
    return f"[bold]{'Example' if len(commands) == 1 else 'Examples'}[/bold]\n\n{lines}"


def split_words(
    config: str | None, overrides: Sequence[str] | None
) -> tuple[Path | None, tuple[str, ...]]:
    """Tell the optional configuration file from the overrides: it is the first word without ``=``.

    Raises:
        InvalidInput: a folder where a file was expected.
    """
    rest = tuple(overrides or ())
    if config is None:
        return None, rest
    path = Path(config)
    if "=" in config and not path.exists():
        return None, (config, *rest)
    if path.is_dir():
        raise InvalidInput(
            f"{config} is a folder; expected a TOML file. To train on a folder: "
            f"corpus.path={config}"
        )
    return path, rest


def override(key: str, text: str) -> str:
    """An override that stays text, whatever TOML would make of it (``run.name=7``)."""
    return f"{key}={json.dumps(text, ensure_ascii=False)}"


def module_command(module: str, config: Path | None, words: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs ``module`` with a configuration and overrides."""
    given = ("--config", str(config)) if config else ()
    return (sys.executable, "-P", "-m", module, *given, *words)


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process, so that signals and exit status are the started one's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))
