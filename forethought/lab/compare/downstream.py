"""``python -m forethought.lab.compare.downstream``: one model on a benchmark of a comparison.

    plain   accuracy of answers without a thought
    think   accuracy behind a thought, opened by the prompt

Design: a separate process, as for :mod:`.measurement`; the figures are those of ``forethought downstream``,
with and without ``--think``. The price: the model is loaded twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.lab.compare.plan import ComparisonPlan, DownstreamEntry
from forethought.run.files import write_whole

if TYPE_CHECKING:
    from forethought.lab.downstream.scores import Score


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write the record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--downstream", required=True, help="the plan's entry, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    from forethought import process

    def run() -> int:
        import torch

        torch.set_num_threads(arguments.threads)
        entry = DownstreamEntry.model_validate_json(arguments.downstream)
        identity = {"model": str(arguments.model), "downstream": entry.model_dump()}
        record = identity | evaluate(arguments.model, entry)
        write_whole(arguments.out, json.dumps(record, indent=2) + "\n")
        return 0

    return process.exit_status("downstream", run)


def check_files(plan: ComparisonPlan) -> None:
    """Check that the harness is installed and the files of a plan's benchmarks hold their questions.

    Raises:
        InvalidInput: they do not.
    """
    from forethought.lab.downstream.harness import check_data, check_installed
    from forethought.lab.downstream.questions import read_questions
    from forethought.lab.downstream.suites import benchmark_of, suite

    for entry in plan.downstream:
        check_installed()
        chosen = suite(entry.suite)
        check_data(entry.suite, chosen, entry.data)
        benchmark = benchmark_of(chosen.tasks[0].task)
        if entry.data and benchmark:
            read_questions(benchmark, Path(entry.data).expanduser())


def evaluate(model: Path, entry: DownstreamEntry) -> dict[str, Any]:
    """``plain`` and, if asked for, ``think``: each with ``accuracy`` and ``stderr`` (None if unknown).

    Raises:
        InvalidInput: the model, the suite or its data cannot be read, or the model has no markers.
    """
    modes = {"plain": False, "think": True} if entry.think else {"plain": False}
    return {mode: _accuracy(model, entry, opens_thought=thinks) for mode, thinks in modes.items()}


def _accuracy(model: Path, entry: DownstreamEntry, *, opens_thought: bool) -> dict[str, Any]:
    from forethought.lab.downstream.harness import HarnessOptions, adjusted, run_suite
    from forethought.lab.downstream.scores import scores_of, suite_mean
    from forethought.lab.downstream.suites import suite

    options = HarnessOptions(
        batch_size=entry.batch_size,
        limit=entry.limit or None,
        seed=entry.seed,
        dtype=entry.dtype,
        opens_thought=opens_thought,
        think_open=entry.think_open,
        think_close=entry.think_close,
        data=entry.data,
    )
    chosen = adjusted(suite(entry.suite), max_tokens=entry.max_tokens or None)
    evaluated = run_suite(model, chosen, options)
    scores = scores_of(chosen, evaluated.runs)
    asked, in_data = map(sum, zip(*evaluated.num_questions.values(), strict=True))
    return {
        "accuracy": suite_mean(scores),
        "stderr": _standard_error(scores),
        "num_asked": asked,
        "num_in_data": in_data,
    }


def _standard_error(scores: Sequence[Score]) -> float | None:
    """Over questions; None for a mean over several tasks or runs."""
    counting = [score for score in scores if score.counts]
    return counting[0].stderr if len(counting) == 1 else None


if __name__ == "__main__":
    sys.exit(main())
