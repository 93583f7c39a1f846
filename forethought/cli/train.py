"""``forethought train``: only the learner, when its replicas run elsewhere.

Design: as in ``serve``, settings are checked here first, and then the process becomes the trainer.
"""

from __future__ import annotations

import typer

from forethought.cli.launch import (
    CONFIG_ARGUMENT,
    OVERRIDES_ARGUMENT,
    become,
    module_command,
    split_config,
)


def train(
    config: str | None = CONFIG_ARGUMENT,
    overrides: list[str] | None = OVERRIDES_ARGUMENT,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Only check the configuration and estimate memory."
    ),
) -> None:
    """Run only the learner; replicas join through Redis (see [cyan]forethought serve[/cyan]).

    Restarted on the same run.directory, it resumes from the newest checkpoint.
    """
    from forethought.config import load_settings

    path, given = split_config(config, overrides)
    load_settings(path, given)
    become(module_command("trainer", path, (*given, *(("--dry-run",) if dry_run else ()))))
