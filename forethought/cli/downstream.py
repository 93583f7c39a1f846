"""``forethought downstream``: benchmarks on a checkpoint, through lm-evaluation-harness.

Design: as the other commands, this module loads nothing heavy before it is called.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from forethought.errors import InvalidInput

if TYPE_CHECKING:
    from forethought.lab.downstream.harness import HarnessOptions
    from forethought.lab.downstream.suites import Suite

_MODEL = typer.Argument(
    None, metavar="CHECKPOINT", help="A run, a checkpoint or a model directory."
)


def _print_tasks_path(asked: bool) -> None:
    if asked:
        from forethought.lab.downstream.harness import TASKS

        typer.echo(TASKS)
        raise typer.Exit


def _print_suites(asked: bool) -> None:
    if asked:
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
        "", "--tasks", metavar="A,B", help="Tasks or groups of lm_eval instead."
    ),
    think: bool = typer.Option(False, "--think", help="Open a thought behind every prompt."),
    chat: bool = typer.Option(False, "--chat", help="Ask through the chat template."),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Questions a task at most."),
    runs: int | None = typer.Option(None, "--runs", min=1, help="Sampled runs to average."),
    temperature: float | None = typer.Option(None, "--temperature", min=0, help="0 is greedy."),
    max_tokens: int | None = typer.Option(None, "--max-tokens", min=1, help="Of an answer."),
    shots: int | None = typer.Option(None, "--shots", min=0, help="Examples before a question."),
    batch_size: int = typer.Option(8, "--batch-size", min=1, help="Questions asked at once."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the first run; the next adds one."),
    device: str = typer.Option("auto", "--device", help="cpu, cuda or cuda:N."),
    dtype: str = typer.Option("auto", "--dtype", help="float32, bfloat16, or what the model says."),
    think_open: str = typer.Option("<think>", "--think-open", help="The model's open marker."),
    think_close: str = typer.Option("</think>", "--think-close", help="The model's close marker."),
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
        help="Show where our task files lie, for lm_eval --include_path, and exit.",
        callback=_print_tasks_path,
        is_eager=True,
    ),
) -> None:
    """Evaluate a checkpoint with lm-evaluation-harness; prints a table."""
    from forethought.lab.downstream.harness import HarnessOptions, adjusted

    name, chosen = _chosen(suite, tasks)
    chosen = adjusted(chosen, runs, temperature, max_tokens, shots)
    if checkpoint is None:
        raise InvalidInput(
            "no checkpoint is named; expected `forethought downstream CHECKPOINT --suite NAME`"
        )
    asking = HarnessOptions(
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        device=_device(device),
        dtype=dtype,
        opens_thought=think,
        chat=chat,
        think_open=think_open,
        think_close=think_close,
    )
    _run(checkpoint, name, chosen, asking, out)


def _chosen(name: str, tasks: str) -> tuple[str, Suite]:
    from forethought.lab.downstream.harness import suite_of_tasks
    from forethought.lab.downstream.suites import suite

    if bool(name) == bool(tasks):
        raise InvalidInput("expected one of --suite NAME (see --list-suites) and --tasks A,B")
    return (name, suite(name)) if name else (tasks, suite_of_tasks(tasks.split(",")))


def _device(device: str) -> str:
    from forethought.lab.downstream.harness import check_installed

    check_installed()
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _run(
    checkpoint: Path, name: str, suite: Suite, asking: HarnessOptions, out: Path | None
) -> None:
    from rich.console import Console

    from forethought.lab.downstream.harness import find_model, run_suite
    from forethought.lab.downstream.scores import report, scores_of, table

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # not offline: benchmarks are fetched
    model = find_model(checkpoint)
    found = scores_of(suite, run_suite(model, suite, asking))
    if out is not None:
        written = json.dumps(report(str(model), name, suite, asking, found), indent=2)
        out.write_text(written + "\n", encoding="utf-8")
    Console().print(table(f"{name} on {checkpoint}", found))
