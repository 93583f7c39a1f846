"""Command lines: parsing the user's arguments and building those of the processes.

Design: processes are started as ``python -P -m MODULE``. ``-P`` keeps the current directory out of the
import path: users run this inside projects that have their own ``services`` or ``trainer`` folder, which
would be started instead. The price is that a third-party objective module must be installed or on
``PYTHONPATH``; being in the current directory is not enough.
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

CONFIG_ARGUMENT = typer.Argument(
    None, metavar="CONFIG", help="A TOML file; defaults apply without one."
)
OVERRIDES_ARGUMENT = typer.Argument(
    None, metavar="section.key=value", help="Settings that override file and environment."
)


def examples(*commands: str) -> str:
    """The epilog of a command's help."""
    lines = "\n\n".join(f"  [cyan]{command}[/cyan]" for command in commands)
    return f"[bold]{'Example' if len(commands) == 1 else 'Examples'}[/bold]\n\n{lines}"


def split_config(
    config: str | None, overrides: Sequence[str] | None
) -> tuple[Path | None, tuple[str, ...]]:
    """Split the optional configuration file from the overrides: it is the first argument without ``=``.

    Raises:
        InvalidInput: the file is a folder.
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
    """An override whose value stays a string, even if TOML would parse it otherwise (``run.name=7``)."""
    return f"{key}={json.dumps(text, ensure_ascii=False)}"


def module_command(module: str, config: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs ``module`` with a configuration and overrides."""
    given = ("--config", str(config)) if config else ()
    return (sys.executable, "-P", "-m", module, *given, *overrides)


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process, so that signals and exit status are those of the started one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))
