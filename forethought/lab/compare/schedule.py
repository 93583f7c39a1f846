"""Running the trials of a comparison with bounded concurrency.

    base's run -> arm's run -> measurement, benchmarks
                      └─────-> stage's run -> measurement, benchmarks -> …

Design: every trial is an asyncio task that awaits its inputs (its base, the reference's budget, the
previous stage); each input is created once and awaited by all dependents. At most ``processes`` of them
run a process at a time. Runs that finished under the same settings are not repeated, so a stopped
comparison resumes. A failed trial fails the trials that start from it, and no others. The price is that a
trial's settings must be kept next to its result, to detect that they changed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forethought.background import end
from forethought.errors import ForethoughtError
from forethought.lab.compare.plan import (
    ArmEntry,
    BaseEntry,
    ComparisonPlan,
    DownstreamEntry,
    EvaluationEntry,
)
from forethought.lab.compare.trial import (
    Trial,
    arm_settings,
    base_settings,
    stage_settings,
    start_of,
)
from forethought.run.cost import Cost, cost_of
from forethought.run.directory import RunDirectory
from forethought.run.files import read_object

_SHOWN_LINES = 5


class TrialFailed(ForethoughtError):
    """A process of a trial exited with a non-zero status; the message quotes its log."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """The result of a trial: its metrics by kind of position, its cost, and the duration of its run.

    Example:
        ``TrialOutcome(Trial("late", "rlp"), {"answers": {…}}, Cost(…), seconds=61.0)``
    """

    trial: Trial
    figures: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    error: str | None = None


class Schedule:
    """Runs every trial of a plan; calls ``on_outcome`` per outcome, ``on_active`` with active trials."""

    def __init__(
        self,
        plan: ComparisonPlan,
        on_outcome: Callable[[TrialOutcome], None] = lambda _: None,
        on_active: Callable[[Sequence[Trial]], None] = lambda _: None,
    ) -> None:
        self._plan, self._on_outcome, self._on_active = plan, on_outcome, on_active
        self._free = asyncio.Semaphore(plan.processes)
        self._running: dict[Trial, asyncio.Task[Path]] = {}
        self._bases = {base.name: base for base in plan.bases}
        self._arms = {arm.name: arm for arm in plan.arms}
        self._active: dict[Trial, None] = {}  # in start order

    async def run(self) -> list[TrialOutcome]:
        """All outcomes, with the reference first per base and seed; failed ones carry their error."""
        chains = [
            asyncio.create_task(self._chain(base, arm, seed))
            for base in self._plan.bases
            for seed in self._plan.seeds
            for arm in self._reference_first()
            if arm.trains or seed == self._plan.seeds[0]
        ]
        try:
            return [outcome for chain in chains for outcome in await chain]
        finally:
            await end([*chains, *self._running.values()])

    def _reference_first(self) -> list[ArmEntry]:
        """The arms, the reference first, because matched arms wait for it."""
        return sorted(
            self._plan.arms, key=lambda arm: (arm.name != self._plan.reference, arm.match)
        )

    async def _chain(self, base: BaseEntry, arm: ArmEntry, seed: int) -> list[TrialOutcome]:
        """An arm and the stages after it; the first failure ends the chain."""
        outcomes: list[TrialOutcome] = []
        for stage in ("", *(stage.name for stage in self._plan.stages)):
            outcome = await self._outcome(Trial(base.name, arm.name, seed, stage))
            outcomes.append(outcome)
            self._on_outcome(outcome)
            if outcome.error is not None:
                break
        return outcomes

    async def _outcome(self, trial: Trial) -> TrialOutcome:
        try:
            model = await self._model(trial)
            figures = await self._measured(trial, model)
        except TrialFailed as error:
            return TrialOutcome(trial, error=str(error))
        seconds = trial.run(self._plan).read_summary().get("seconds", 0.0)
        return TrialOutcome(trial, figures, self._cost(trial), seconds)

    def _cost(self, trial: Trial) -> Cost:
        return cost_of(trial.run(self._plan).read_metrics())

    async def _model(self, trial: Trial) -> Path:
        """The model that a trial produces; the first caller starts it, later ones await it."""
        if trial not in self._running:
            self._running[trial] = asyncio.create_task(self._make(trial))
        return await asyncio.shield(self._running[trial])

    async def _make(self, trial: Trial) -> Path:
        base = self._bases[trial.base]
        if not trial.arm:
            return await self._trained(trial, base_settings(self._plan, base))
        if trial.stage:
            names = ["", *(stage.name for stage in self._plan.stages)]
            index = names.index(trial.stage)
            before = await self._model(Trial(trial.base, trial.arm, trial.seed, names[index - 1]))
            stage = self._plan.stages[index - 1]
            return await self._trained(trial, stage_settings(self._plan, trial, stage, before))
        start = await self._model(Trial(base.name)) if base.settings else start_of(base)
        arm = self._arms[trial.arm]
        if not arm.trains:
            return start
        budget = await self._budget(trial) if arm.match else Cost()
        settings = arm_settings(self._plan, trial, arm, base, start, budget)
        return await self._trained(trial, settings)

    async def _budget(self, trial: Trial) -> Cost:
        """The cost of the reference arm with the same base and seed.

        Raises:
            TrialFailed: it failed, or its cost is unknown, or nothing.
        """
        reference = Trial(trial.base, self._plan.reference, trial.seed)
        try:
            await self._model(reference)
        except TrialFailed:
            raise TrialFailed(f"{trial} has no budget: its reference {reference} failed") from None
        budget = self._cost(reference)
        if fault := budget_fault(reference.run(self._plan), budget):
            raise TrialFailed(
                f"{trial} is matched to {reference}, which {fault}; expected a finished run that learned: "
                f'delete {reference.folder(self._plan)} to repeat it, or set match = "" and '
                "learner.steps for this arm"
            )
        return budget

    async def _trained(self, trial: Trial, settings: dict[str, Any]) -> Path:
        """Run the trial unless it has finished."""
        import tomli_w

        run, config = trial.run(self._plan), trial.folder(self._plan) / "trial.toml"
        wanted = tomli_w.dumps(settings)
        if not config.exists() or config.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(trial.following_trials_folder(self._plan), ignore_errors=True)
            config.parent.mkdir(parents=True)
            config.write_text(wanted, encoding="utf-8")
        if not run.read_summary().get("done"):
            await self._process(trial, "run", "services.single", "--config", str(config))
        if not run.read_summary().get("done"):
            raise TrialFailed(f"run of {trial} was stopped; the same command resumes it")
        return run.model()

    async def _measured(self, trial: Trial, model: Path) -> dict[str, Any]:
        """The metrics by kind of position, and ``downstream``: those of the benchmarks, by suite."""
        cache = ("--cache", str(self._plan.directory / "cache"))
        figures = await self._recorded(trial, model, "measurement", self._plan.evaluation, *cache)
        threads = ("--threads", str(max(1, (os.cpu_count() or 1) // self._plan.processes)))
        benchmarks = {
            entry.suite: await self._recorded(trial, model, "downstream", entry, *threads)
            for entry in self._plan.benchmarks
        }
        return figures | {"downstream": benchmarks}

    async def _recorded(
        self,
        trial: Trial,
        model: Path,
        module: Literal["measurement", "downstream"],
        entry: EvaluationEntry | DownstreamEntry,
        *arguments: str,
    ) -> dict[str, Any]:
        """What a module of this package says of a model, unless it said so before."""
        key, name = "evaluation", str(module)
        if isinstance(entry, DownstreamEntry):
            key, name = "downstream", f"{module}-{entry.suite}"
        out = trial.folder(self._plan) / f"{name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        record = read_object(out)
        if (record.get("model"), record.get(key)) != (str(model), entry.model_dump()):
            given = ("--model", str(model), f"--{key}", entry.model_dump_json(), "--out", str(out))
            await self._process(
                trial, name, f"forethought.lab.compare.{module}", *given, *arguments
            )
            record = read_object(out)
        return {name: value for name, value in record.items() if name not in ("model", key)}

    async def _process(self, trial: Trial, name: str, module: str, *arguments: str) -> None:
        """Run a module to completion once a slot is free, logging to the trial's folder.

        Raises:
            TrialFailed: it exited with a non-zero status.
        """
        file = trial.folder(self._plan) / f"{name}.log"
        async with self._free:
            self._active[trial] = None
            self._on_active(tuple(self._active))
            try:
                with file.open("wb") as output:
                    status = await _ended(_started(module, arguments, output))
            finally:
                self._active.pop(trial, None)
        if status:
            raise TrialFailed(f"{name} of {trial} exited with status {status}: {_tail(file)}")


def budget_fault(run: RunDirectory, budget: Cost) -> str:
    """Why a finished run's cost is no budget for another run; empty if it is one."""
    num_steps = len(run.read_metrics())
    if num_steps != run.read_summary().get("steps") or run.num_damaged_metrics():
        return f"has {num_steps} steps in metrics.jsonl and not those of its summary"
    if budget.learned_tokens <= 0:
        return "learned 0 tokens"
    return ""


async def _started(
    module: str, arguments: Sequence[str], output: Any
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=output, stderr=output
    )


async def _ended(starting: Coroutine[Any, Any, asyncio.subprocess.Process]) -> int:
    """The exit status; on cancellation the process is terminated."""
    child = await starting
    try:
        return await child.wait()
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


def _tail(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{' | '.join(lines[-_SHOWN_LINES:])} (full log: {file})"
