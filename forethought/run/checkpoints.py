"""Resolving the models to evaluate from the paths users have.

Design: a run directory, a checkpoint folder, a model directory and a model's id on the hub all identify a
model; if it is part of a run, the run and the step are resolved with it. A series starts with the run's
initial model as step 0, if it still exists at the path in the run's configuration. The price is that a
model directory moved out of its run loses both.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forethought.errors import InvalidInput
from forethought.hub import HubId, fetch_model, model_folder
from forethought.run.directory import RunDirectory

log = logging.getLogger(__name__)

_STEP = "step-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory, its label, and its run and step (0: the initial model), if any.

    Example:
        ``Checkpoint("rlp/step-000060", Path("runs/demo/rlp/checkpoints/step-000060/model"), run, 60)``
    """

    label: str
    model: Path
    run: RunDirectory | None = None
    step: int | None = None


def resolve(path: Path) -> Checkpoint:
    """The checkpoint that a path refers to; for a run directory, the newest.

    Raises:
        InvalidInput: neither a model directory, nor a checkpoint folder, nor a run with a checkpoint, nor
            a model of the hub that is available.
    """
    path = path.expanduser()
    if hub_id := HubId.parse(str(path)):
        found = fetch_model(hub_id)
        return Checkpoint(str(found.hub_id), found.folder)
    if (path / "checkpoints").is_dir():
        return _of_model(RunDirectory(path).model())
    for model in (path, path / "model"):
        if (model / "config.json").is_file():
            return _of_model(model)
    raise InvalidInput(
        f"{path} is not a checkpoint; expected a model directory (config.json), a checkpoint folder "
        "(…/checkpoints/step-000060), a run directory (its newest checkpoint is used) or a model's id on "
        "the Hugging Face hub (owner/name)"
    )


def series(path: Path, base: str = "", revision: str = "") -> list[Checkpoint]:
    """All checkpoints of a run, oldest first, preceded by its initial model ``base`` if that exists.

    ``base`` and ``revision`` are a run's ``model.path`` and ``model.revision``.

    Raises:
        InvalidInput: not a run directory, or one without checkpoints.
    """
    run = RunDirectory(path.expanduser().resolve())
    found = run.complete_checkpoints()
    if not found:
        raise InvalidInput(
            f"{path} holds no checkpoints; expected a run directory with some: checkpoint.every_steps "
            "and checkpoint.keep decide how many a run keeps"
        )
    first = _first(base, revision)
    return [
        *([Checkpoint(f"{run.root.name}/base", first, run, 0)] if first else []),
        *(_of_model(folder / "model") for folder in found),
    ]


def _first(base: str, revision: str) -> Path | None:
    """The folder of a run's initial model, if it is still there."""
    try:
        folder = model_folder(base, revision)
    except InvalidInput as error:
        log.warning("the run's initial model is left out: %s", error)
        return None
    return folder if base and (folder / "config.json").is_file() else None


def distinct(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Each model once, with unique labels: a label that is not unique becomes the path."""
    by_model = list({c.model.resolve(): c for c in checkpoints}.values())
    times = Counter(checkpoint.label for checkpoint in by_model)
    return [c if times[c.label] == 1 else replace(c, label=str(c.model)) for c in by_model]


def _of_model(model: Path) -> Checkpoint:
    folder = model.resolve().parent
    number = folder.name.removeprefix(_STEP)
    if folder.parent.name == "checkpoints" and folder.name.startswith(_STEP) and number.isdecimal():
        run = RunDirectory(folder.parent.parent)
        return Checkpoint(f"{run.root.name}/{folder.name}", model, run, int(number))
    return Checkpoint(model.resolve().name, model)
