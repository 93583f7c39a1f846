"""``forethought downstream``: benchmarks on a checkpoint, through lm-evaluation-harness.

Design: like the other commands, this module loads nothing heavy before it is called.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from forethought.errors import InvalidInput

if TYPE_CHECKING:
    from forethought.lab.downstream.harness import HarnessOptions
    from forethought.lab.downstream.suites import Suite

_MODEL = typer.Argument(
    None,
    metavar="CHECKPOINT",
    help="A run directory, a checkpoint, a model directory or owner/name.",
)


def _print_tasks_path(requested: bool) -> None:
    if requested:
        from forethought.lab.downstream.harness import TASKS

        typer.echo(TASKS)
        raise typer.Exit


def _print_suites(requested: bool) -> None:
    if requested:
        from forethought.lab.downstream.suites import SUITES

        for name, suite in SUITES.items():
            typer.echo(
                f"{name}: {', '.join(scored.task for scored in suite.tasks)}\n    {suite.note}"
            )
        raise typer.Exit


def downstream(
    checkpoint: Path | None = _MODEL,
    suite: str = typer.Option("", "--suite", metavar="NAME", help="A suite; see --list-suites."),
    tasks: str = typer.Option(
        "", "--tasks", metavar="A,B", help="lm_eval tasks or groups, instead of a suite."
    ),
    data: Path | None = typer.Option(
        None,
        "--data",
        metavar="FILE",
        help="The suite's questions, in its data set's own columns: .jsonl, .json, .csv, .parquet.",
    ),
    think: bool = typer.Option(
        False, "--think", help="Append the think-open marker to every prompt."
    ),
    chat: bool = typer.Option(False, "--chat", help="Apply the chat template."),
    limit: int | None = typer.Option(
        None, "--limit", min=1, help="Maximum number of questions per task."
    ),
    runs: int | None = typer.Option(
        None, "--runs", min=1, help="Number of sampled runs to average."
    ),
    temperature: float | None = typer.Option(
        None, "--temperature", min=0, help="Sampling temperature; 0 is greedy."
    ),
    max_tokens: int | None = typer.Option(
        None, "--max-tokens", min=1, help="Maximum tokens of an answer."
    ),
    shots: int | None = typer.Option(None, "--shots", min=0, help="Number of few-shot examples."),
    batch_size: int = typer.Option(8, "--batch-size", min=1, help="Questions per batch."),
    seed: int = typer.Option(
        0, "--seed", min=0, help="Seed of the first run; each further run adds one."
    ),
    device: str = typer.Option("auto", "--device", help="cpu, cuda or cuda:N."),
    dtype: str = typer.Option(
        "auto", "--dtype", help="float32, bfloat16, or auto: the model's own."
    ),
    think_open: str = typer.Option(
        "", "--think-open", help="The think-open marker; default: the run's, else <think>."
    ),
    think_close: str = typer.Option(
        "", "--think-close", help="The think-close marker; default: the run's, else </think>."
    ),
    out: Path | None = typer.Option(None, "--out", metavar="FILE", help="Write results as JSON."),
    list_suites: bool = typer.Option(
        False,
        "--list-suites",
        help="Show the suites and exit.",
        callback=_print_suites,
        is_eager=True,
    ),
    print_tasks_path: bool = typer.Option(
        False,
        "--print-tasks-path",
        help="Print the folder of Forethought's task files, for lm_eval --include_path, and exit.",
        callback=_print_tasks_path,
        is_eager=True,
    ),
) -> None:
    """Evaluate a checkpoint with lm-evaluation-harness and print a table.

    Example: forethought downstream runs/demo/rlp --suite state-tracking
    """
    from forethought.lab.downstream.harness import HarnessOptions, adjusted, check_data

    name, chosen = _chosen(suite, tasks)
    check_data(name, chosen, str(data or ""))
    chosen = adjusted(chosen, runs, temperature, max_tokens, shots)
    if checkpoint is None:
        raise InvalidInput(
            "no checkpoint is named; expected `forethought downstream CHECKPOINT --suite NAME`"
        )
    options = HarnessOptions(
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        device=_device(device),
        dtype=dtype,
        opens_thought=think,
        chat=chat,
        think_open=think_open,
        think_close=think_close,
        data=str(data or ""),
    )
    _run(checkpoint, name, chosen, options, out)


def _chosen(name: str, tasks: str) -> tuple[str, Suite]:
    from forethought.lab.downstream.harness import suite_of_tasks
    from forethought.lab.downstream.suites import suite

    if bool(name) == bool(tasks):
        raise InvalidInput(
            f"got --suite {name!r} and --tasks {tasks!r}; expected one of --suite NAME (see "
            "--list-suites) and --tasks A,B"
        )
    return (name, suite(name)) if name else (tasks, suite_of_tasks(tasks.split(",")))


def _device(device: str) -> str:
    from forethought.lab.downstream.harness import check_installed

    check_installed()
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _run(
    checkpoint: Path, name: str, suite: Suite, options: HarnessOptions, out: Path | None
) -> None:
    from rich.console import Console

    from forethought.lab.downstream.harness import run_suite
    from forethought.lab.downstream.markers import markers_of
    from forethought.lab.downstream.scores import report, table
    from forethought.run.checkpoints import resolve

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if options.data:  # otherwise not offline: benchmark data is fetched
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = resolve(checkpoint)
    think_open, think_close = markers_of(found)
    options = replace(
        options,
        think_open=options.think_open or think_open,
        think_close=options.think_close or think_close,
    )
    evaluated = run_suite(found.model, suite, options)
    if out is not None:
        written = json.dumps(report(str(found.model), name, suite, options, evaluated), indent=2)
        out.write_text(written + "\n", encoding="utf-8")
    Console().print(table(f"{name} on {checkpoint}", suite, evaluated, options.data))
