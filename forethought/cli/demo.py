"""``forethought demo``: base, CPT and RLP compared through the real services, in one command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from forethought.lab.demo.arms import DemoPlan

RLP_STEPS, UNIFORM_STEPS = 120, 160


def demo(
    directory: Path = typer.Option(
        Path("runs/demo"), "--dir", help="Working directory of the demo."
    ),
    engine: str = typer.Option("torch", help="The rollout engine."),
    replicas: int = typer.Option(2, min=1, help="Rollout replicas."),
    seed: int = typer.Option(0, min=0, help="Seed of corpus, positions and thoughts."),
    rebuild_base: bool = typer.Option(
        False,
        help="Only retrain the base model that ships with the package, into DIR/base.",
    ),
) -> None:
    """Watch a small model learn to think: RLP at marked answers, RLP as published, and CPT.

    Existing results in DIR are overwritten. Results: a table, DIR/report.json and DIR/report.png.
    """
    from forethought.lab.demo.arms import DemoPlan

    plan = DemoPlan(directory, engine, replicas, seed)
    if rebuild_base:
        _rebuild_base(plan)
        return
    plan.write_corpus()
    rlp = _run(plan, "rlp", plan.rlp("rlp", "marked", RLP_STEPS))
    _run(plan, "rlp_uniform", plan.rlp("rlp_uniform", "uniform", UNIFORM_STEPS))
    from forethought.lab.demo.arms import matched_tokens

    _run(plan, "cpt", plan.cpt(matched_tokens(rlp)))
    _report(plan, rlp)


def _run(plan: DemoPlan, arm: str, overrides: list[str]) -> dict[str, Any]:
    """Run one arm from scratch; a failed or interrupted arm ends the demo."""
    from forethought.cli.plan import prepare
    from forethought.cli.up import run_here
    from forethought.run.directory import RunDirectory

    directory = plan.arm_directory(arm)
    shutil.rmtree(directory, ignore_errors=True)
    typer.secho(f"\n{arm}", bold=True)
    status = run_here(prepare(None, overrides))
    summary = RunDirectory(directory).read_summary()
    if status or not summary.get("done"):
        sys.exit(status or 1)  # 1: stopped by Ctrl-C, the run is incomplete
    return summary


def _report(plan: DemoPlan, rlp_summary: dict[str, Any]) -> None:
    from rich.console import Console

    from forethought.lab.demo import report as reports
    from forethought.lab.demo.arms import base_model
    from forethought.process import quiet_libraries
    from forethought.run.directory import RunDirectory

    quiet_libraries()
    runs = {arm: plan.arm_directory(arm) for arm in ("rlp", "rlp_uniform")}
    models = {"base": base_model()} | {
        arm: RunDirectory(plan.arm_directory(arm)).model() for arm in ("cpt", *runs)
    }
    console = Console()
    report: reports.Report = {}
    with console.status("measuring on held-out documents"):
        for arm, model in models.items():
            heldout, cache = plan.corpus / "heldout.jsonl", plan.directory / "cache"
            report[arm] = _measured(model, heldout, cache)
    report["run"] = reports.run_figures(rlp_summary)
    reports.write_report(report, plan.directory / "report.json")
    reports.draw_demo(report, runs, plan.directory / "report.png")
    console.print(reports.table(report))
    console.print(f"report      {plan.directory / 'report.json'}, {plan.directory / 'report.png'}")
    console.print(f"checkpoint  {models['rlp']}")


def _measured(model: Path, heldout: Path, cache: Path) -> dict[str, float]:
    """Think and no-think metrics at the answers of held-out documents, the same positions for every arm."""
    from forethought.lab.compare.measurement import measure_model
    from forethought.lab.compare.plan import EvaluationEntry
    from forethought.lab.demo import arms

    entry = EvaluationEntry(
        corpus=str(heldout),
        window_tokens=arms.WINDOW_TOKENS,
        num_documents=arms.NUM_HELDOUT_DOCUMENTS,
        num_thoughts=arms.GROUP_SIZE,
        max_thought_tokens=arms.MAX_THOUGHT_TOKENS,
        seed=1,
        elsewhere=False,
    )
    return dict(measure_model(model, entry, cache)["answers"])


def _rebuild_base(plan: DemoPlan) -> None:
    from forethought.lab.demo.base_model import prepare
    from forethought.process import quiet_libraries

    quiet_libraries()
    root = plan.directory / "base"
    shutil.rmtree(root, ignore_errors=True)
    overrides = prepare(root, plan.seed)
    from forethought.cli.plan import prepare as prepare_run
    from forethought.cli.up import run_here

    sys.exit(run_here(prepare_run(None, overrides)))
