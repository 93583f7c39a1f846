"""``forethought train``: the learner alone, for where its replicas run elsewhere.

Design: as in ``serve``, settings are checked here first and the process then becomes the trainer.
"""

from __future__ import annotations

import typer

from forethought.cli.launch import (
    CONFIG_ARGUMENT,
    OVERRIDES_ARGUMENT,
    become,
    module_command,
    split_words,
)


def train(
    config: str | None = CONFIG_ARGUMENT,
    overrides: list[str] | None = OVERRIDES_ARGUMENT,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Check everything and estimate memory; train nothing."
    ),
) -> None:
    """Run the learner alone; replicas join through Redis (see [cyan]forethought serve[/cyan]).

    Started again on the same run.directory, it resumes from the newest checkpoint.
    """
    from forethought.config import load_settings

    path, words = split_words(config, overrides)
    load_settings(path, words)
    become(module_command("trainer", path, (*words, *(("--dry-run",) if dry_run else ()))))
