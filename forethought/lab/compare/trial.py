"""One run of a comparison: an arm, or a stage after it, from one base with one seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.hub import model_folder
from forethought.lab.compare.plan import (
    DEMO_MODEL,
    ArmEntry,
    BaseEntry,
    ComparisonPlan,
    StageEntry,
    Tables,
    layered,
)
from forethought.run.cost import Cost
from forethought.run.directory import RunDirectory

_SAME_START: Tables = {"warmup": {"when": "never"}}
"""Arms start from one base; a base whose markers are to be warmed up is trained by the objective warmup."""

_UNTIL_THE_BUDGET = 1_000_000_000  # steps, where learner.max_tokens ends the run


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. Arms without settings have no run; bases are trained with the first seed.

    Example:
        ``Trial("late", "rlp", seed=0)``
    """

    base: str
    arm: str = ""  # empty: the training of the base itself
    seed: int = 0
    stage: str = ""

    def __str__(self) -> str:
        parts = (self.base, self.arm, f"seed-{self.seed}" if self.arm else "base", self.stage)
        return "/".join(part for part in parts if part)

    def folder(self, plan: ComparisonPlan) -> Path:
        """The folder of the trial."""
        return plan.directory / "trials" / str(self)

    def following_trials_folder(self, plan: ComparisonPlan) -> Path:
        """The folder to delete when the trial's settings change: for a base, it includes its arms."""
        return self.folder(plan) if self.arm else plan.directory / "trials" / self.base

    def run(self, plan: ComparisonPlan) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.folder(plan) / "run")


def base_settings(plan: ComparisonPlan, base: BaseEntry) -> dict[str, Any]:
    """The settings of the run that trains a base."""
    trial = Trial(base.name, seed=plan.seeds[0])
    return _settings(plan, trial, start_of(base), base.settings)


def arm_settings(
    plan: ComparisonPlan, trial: Trial, arm: ArmEntry, base: BaseEntry, model: Path, budget: Cost
) -> dict[str, Any]:
    """The settings of an arm's run from ``model``; ``budget`` is the reference arm's cost."""
    settings = _settings(plan, trial, model, base.arm_settings, arm.settings)
    if arm.match:
        num_tokens = budget.tokens if arm.match == "tokens" else budget.tokens_to_learn_for_flops
        settings["learner"] |= {"steps": _UNTIL_THE_BUDGET, "max_tokens": num_tokens}
    return settings


def stage_settings(
    plan: ComparisonPlan, trial: Trial, stage: StageEntry, model: Path
) -> dict[str, Any]:
    """The settings of a stage's run, from the previous stage's ``model``."""
    return _settings(plan, trial, model, stage.settings)


def start_of(base: BaseEntry) -> Path:
    """The model directory of a base, or the one it is trained from; of the hub's, downloaded if need be.

    Raises:
        InvalidInput: a model of the hub is not available.
    """
    if base.model != DEMO_MODEL:
        return model_folder(base.model)
    from forethought.lab.demo.arms import base_model

    return base_model()


def _settings(plan: ComparisonPlan, trial: Trial, model: Path, *layers: Tables) -> dict[str, Any]:
    own: Tables = {
        "run": {
            "name": str(trial).replace("/", "."),
            "directory": str(trial.run(plan).root),
            "seed": trial.seed,
        },
        "model": {"path": str(model)},
        "learner": {},
    }
    return layered(_SAME_START, plan.settings, *layers, own)
