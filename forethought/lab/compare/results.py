"""The results of a comparison: every trial, means over seeds, and differences from the reference.

Design: this JSON is the result; table and figure are derived only from it. Differences are paired by seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forethought.lab.compare.plan import ComparisonPlan
from forethought.lab.compare.schedule import TrialOutcome
from forethought.lab.statistics import SeedInterval, seed_interval

Results = dict[str, Any]
Row = dict[str, Any]

FIGURES = (
    "think_accuracy",
    "no_think_accuracy",
    "think_nll",
    "marginal_nll",
    "no_think_nll",
    "information_gain",
    "thought_tokens_mean",
    "truncated_share",
)
ELSEWHERE = ("information_gain", "no_think_nll")
STDERR = "_stderr"
_DOWNSTREAM = "downstream_"


def results_of(plan: ComparisonPlan, outcomes: Sequence[TrialOutcome]) -> Results:
    """The results by name, ready for JSON."""
    trials = [_trial(outcome) for outcome in outcomes]
    return {
        "name": plan.name,
        "plan": plan.model_dump(mode="json"),
        "trials": trials,
        "rows": [
            _row(plan, trials, base.name, arm.name, stage)
            for base in plan.bases
            for stage in ("", *(stage.name for stage in plan.stages))
            for arm in plan.arms
        ],
    }


def write_results(results: Results, path: Path) -> None:
    """Write the JSON."""
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def value(row: Row, name: str) -> SeedInterval | None:
    """A metric of a row as an interval; None if it was not measured."""
    found = row["values"].get(name)
    return SeedInterval(**found) if found else None


def benchmarks(results: Results) -> dict[str, str]:
    """The plan's benchmark accuracies: name of the value, and a title such as ``gsm8k think``."""
    names = {}
    for entry in results["plan"]["downstream"]:
        names[_DOWNSTREAM + entry["suite"]] = entry["suite"]
        if entry["think"]:
            names[f"{_DOWNSTREAM}{entry['suite']}_think"] = f"{entry['suite']} think"
    return names


def _trial(outcome: TrialOutcome) -> Row:
    trial, figures = outcome.trial, outcome.figures
    values: dict[str, float] = {}
    if outcome.error is None:
        answers, elsewhere = figures["answers"], figures.get("elsewhere", {})
        values = {name: answers[name] for name in FIGURES}
        values |= {f"elsewhere_{name}": elsewhere[name] for name in ELSEWHERE if elsewhere}
        values |= _accuracies(figures.get("downstream", {}))
        values |= outcome.cost.to_dict(figures["num_parameters"]) | {"seconds": outcome.seconds}
    return {
        "base": trial.base,
        "arm": trial.arm,
        "stage": trial.stage,
        "seed": trial.seed,
        "error": outcome.error,
        "values": values,
    }


def _accuracies(benchmarks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """``downstream_SUITE`` and ``downstream_SUITE_think``, and their standard errors if known."""
    values: dict[str, float] = {}
    for suite, modes in benchmarks.items():
        for mode, found in modes.items():
            name = f"{_DOWNSTREAM}{suite}" + ("_think" if mode == "think" else "")
            values[name] = found["accuracy"]
            if found["stderr"] is not None:
                values[name + STDERR] = found["stderr"]
    return values


def _row(plan: ComparisonPlan, trials: Sequence[Row], base: str, arm: str, stage: str) -> Row:
    own, reference = (_by_seed(trials, base, name, stage) for name in (arm, plan.reference))
    names = next(iter(own.values()), {}).keys()
    accuracies = [n for n in names if n.startswith(_DOWNSTREAM) and not n.endswith(STDERR)]
    label = next(entry.label or entry.name for entry in plan.arms if entry.name == arm)
    return {
        "base": base,
        "arm": arm,
        "label": label,
        "stage": stage,
        "num_failed": sum(
            trial["error"] is not None
            for trial in trials
            if (trial["base"], trial["arm"], trial["stage"]) == (base, arm, stage)
        ),
        "values": {
            name: seed_interval([v[name] for v in own.values()]).to_dict() for name in names
        },
        "minus_reference": {
            name: seed_interval(
                [own[seed][name] - reference[seed][name] for seed in both]
            ).to_dict()
            for name in (*FIGURES, *accuracies)
            if (both := [seed for seed in own if seed in reference])
        },
    }


def _by_seed(trials: Sequence[Row], base: str, arm: str, stage: str) -> dict[int, dict[str, float]]:
    return {
        trial["seed"]: trial["values"]
        for trial in trials
        if (trial["base"], trial["arm"], trial["stage"]) == (base, arm, stage) and trial["values"]
    }
