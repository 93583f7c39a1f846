"""How a run comes to a model that knows its think markers: as it is, or by a warm-up first.

    DIR/warmup/outcome.json    what the model's own thoughts were worth, whether that called for a
    warm-up, and
                               what they are worth after it
    DIR/warmup/run/            the run directory of the warm-up, a run without rollouts
    DIR/warmup/model/          its result, from which the main run starts

Design: a run of its own before the main one, with its own learning rate, progress, checkpoints, metrics
and page; the main run's steps, batches and schedules know nothing of it. Whether one is needed is
measured once, by the learner, and recorded. The price: the model is loaded a second time after a warm-up,
and replicas wait meanwhile.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from forethought.config import Settings
from forethought.config.sections import BaselineSection, ObjectiveSection
from forethought.errors import InvalidInput
from forethought.objectives import Objective
from forethought.objectives.parts.selection import Selection
from forethought.objectives.warmup import WarmupConfig
from forethought.preflight import check_run
from forethought.run.directory import RunDirectory
from forethought.run.files import copy_whole, write_whole
from trainer.assembly import Assembly, assemble
from trainer.warmup.goal import is_warm
from trainer.warmup.measurement import Worth, set_aside, worth_of_thoughts

log = logging.getLogger(__name__)

_UNIFORM_SHARE = 0.5
"""Of positions: what follows a close, learned at numbers alone, is a number everywhere."""

RunToEnd = Callable[[Assembly], dict[str, Any]]
"""Runs an assembly without rollouts until done or stopped; returns its summary."""


def prepared(
    settings: Settings, objective: Objective, run: RunToEnd
) -> tuple[Assembly | None, dict[str, Any]]:
    """The assembly of a run from a model that knows its markers; None and the summary if a warm-up was not
    completed.

    Raises:
        InvalidInput: as :func:`trainer.assembly.assemble`.
    """
    directory = RunDirectory(settings.run.directory)
    folder, outcome = directory.warmup, directory.read_warmup()
    if not outcome and _may_be_due(settings, objective):
        parts = assemble(settings, objective)
        outcome = _decided(parts, objective)
        _record(folder, outcome)
        if not outcome["needed"]:
            return replace(parts, warmup=outcome), {}
        del parts
    is_begun = directory.latest_checkpoint() is not None  # it holds a model that knows its markers
    if outcome.get("needed") and not is_begun and not (folder / "model").is_dir():
        summary = _warm_up(settings, objective, folder, outcome, run)
        if not summary["done"]:
            return None, summary
        outcome = directory.read_warmup()
    return replace(assemble(_started_from(settings, folder), objective), warmup=outcome), {}


def _may_be_due(settings: Settings, objective: Objective) -> bool:
    """Not once a run has a checkpoint, for a base trained with thoughts, or before predictions."""
    if settings.warmup.when == "never" or not objective.thinks or objective.prediction_tokens:
        return False
    directory = RunDirectory(settings.run.directory)
    own_base = directory.root / "base"
    is_own = own_base.resolve() in Path(settings.model.path).resolve().parents
    return directory.latest_checkpoint() is None and not is_own


def _decided(parts: Assembly, objective: Objective) -> dict[str, Any]:
    """Whether a warm-up is needed, with what was measured; not where nothing can be."""
    section, cursor = parts.settings.warmup, parts.corpus.cursor
    documents = set_aside(parts.corpus, WarmupConfig().measured_documents)
    parts.corpus.seek(cursor)
    try:
        worth = worth_of_thoughts(parts, objective.of_batch(0), documents)
    except InvalidInput as error:
        log.warning("warm-up: not measured, so none is made: %s", error)
        return {"needed": False}
    is_needed = section.when == "always" or worth.information_gain < -section.max_cost_nats
    log.info("warm-up: %s: %s", "needed" if is_needed else "not needed", worth)
    return {"needed": is_needed, "before": worth.to_dict()}


def _warm_up(
    settings: Settings, objective: Objective, folder: Path, outcome: dict[str, Any], run: RunToEnd
) -> dict[str, Any]:
    of_warmup = warmup_settings(settings, objective, folder)
    parts = assemble(of_warmup, check_run(of_warmup))
    with parts.directory.owned():
        summary = run(parts)
        parts.directory.write_summary(summary)
    if not summary["done"]:
        return summary
    measured = [m for m in parts.directory.read_metrics() if "information_gain" in m]
    after = Worth.of(measured[-1]) if measured else Worth(**outcome["before"])
    if not is_warm(after, parts.objective.config):
        log.warning(
            "the warm-up ended at its last step, %d, before its goal: %s; raise warmup.max_steps, or "
            "start the run and watch its gain",
            summary["steps"],
            after,
        )
    _record(folder, outcome | {"after": after.to_dict(), "steps": summary["steps"]})
    log.info("warm-up: done after %d steps: %s", summary["steps"], after)
    copy_whole(Path(summary["checkpoint"]) / "model", folder / "model")
    return summary


def warmup_settings(settings: Settings, objective: Objective, folder: Path) -> Settings:
    """The settings of the warm-up of a run: the same model, corpus, prompt and positions."""
    section = settings.warmup
    kept = objective.config
    selection = (
        kept.model_dump(include=set(Selection.model_fields)) if isinstance(kept, Selection) else {}
    )
    parameters = {
        **selection,
        "uniform_share": max(_UNIFORM_SHARE, selection.get("uniform_share", 0.0)),
        "num_positions": WarmupConfig().num_positions,
        "prompt": getattr(kept, "prompt", "plain"),
        "max_cost_nats": section.max_cost_nats,
        "min_closed_share": section.min_closed_share,
        **section.parameters,
    }
    learner = {
        "steps": section.max_steps,
        "max_tokens": 0,
        "batch_tasks": section.batch_documents,
        "learning_rate": section.learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "inner_epochs": 1,
        "next_token_every_steps": 0,  # every step of this run is one
        "next_token_coef": 0.0,
        "stay": False,
    }
    return settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"directory": folder / "run"}),
            "objective": ObjectiveSection(name="warmup", parameters=parameters),
            "learner": settings.learner.model_copy(update=learner),
            "baseline": BaselineSection(kind="none"),
        }
    )


def _started_from(settings: Settings, folder: Path) -> Settings:
    if not (folder / "model").is_dir():
        return settings
    model = settings.model.model_copy(update={"path": str(folder / "model")})
    return settings.model_copy(update={"model": model})


def _record(folder: Path, outcome: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "outcome.json", json.dumps(outcome, indent=2) + "\n")
