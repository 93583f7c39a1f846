"""Checkpoints: everything a new learner needs to resume, written atomically.

    step-000040/model/             the policy as published, for AutoModelForCausalLM
    step-000040/state.safetensors  master weights, moments, baseline, random state
    step-000040/progress.json      counters, corpus cursor, epoch
    step-000040/outstanding.binpb  the tasks that were admitted and not yet trained on

Design: written under a temporary name and renamed once complete and flushed to disk, with the metrics of
its steps; tensors are safetensors, not pickle, so that reading a checkpoint never runs code. One that is
damaged all the same is refused, not skipped: which older one to resume from is the user's choice. The
price is that everything passes through one process; sharded state will need one file per rank.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forethought import wire
from forethought.errors import InvalidInput
from forethought.run.directory import RunDirectory
from forethought.run.files import flush, grant_usual_mode, rename_whole
from forethought.types import Task
from trainer.learner.learner import Learner


@dataclass(frozen=True, slots=True)
class Progress:
    """A run's progress. ``num_steps`` counts closed batches; versions and optimizer steps are counted
    separately. ``warmup`` is the outcome of the warm-up before it (:mod:`trainer.warmup.preparation`).

    Example:
        ``Progress(epoch=1, num_steps=40, batch_tasks=32, version=40, num_optimizer_steps=40,``
        ``next_task_id=1312, num_tokens=200_000, seconds=61.5, cursor="{…}")``
    """

    epoch: int
    num_steps: int
    batch_tasks: int
    version: int
    num_optimizer_steps: int
    next_task_id: int
    num_tokens: int
    seconds: float
    cursor: str
    run_id: str = ""
    warmup: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    directory: RunDirectory,
    learner: Learner,
    progress: Progress,
    outstanding: Sequence[Task],
    keep: int,
) -> Path:
    """Write the checkpoint of ``progress.num_steps`` and delete all but the newest ``keep``.

    Raises:
        InvalidInput: it cannot be written (a full disk); the ones before it are as they were.
    """
    final = directory.checkpoint(progress.num_steps)
    if final.exists():
        return final  # a resumed run that stops before its next step has nothing new to save
    with _new_folder(final.with_name(final.name + ".partial")) as partial:
        learner.language_model.model.save_pretrained(partial / "model")
        learner.language_model.tokenizer.save_pretrained(partial / "model")
        state = {name: tensor.detach().cpu().clone() for name, tensor in learner.state().items()}
        save_file(state, str(partial / "state.safetensors"))
        (partial / "outstanding.binpb").write_bytes(wire.encode_tasks(outstanding))
        (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        grant_usual_mode(partial)
        if directory.metrics.exists():
            flush(directory.metrics)  # a resumed run drops no line of a step that it has
        rename_whole(partial, final)
    for old in directory.complete_checkpoints()[:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def _new_folder(partial: Path) -> Iterator[Path]:
    """A new folder for a checkpoint, removed if a file cannot be written, or a full disk stays full."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InvalidInput(
            f"checkpoint {partial.stem} cannot be written to {partial.parent} ({error}); free some space "
            "and run the same command again: it resumes from the checkpoint before"
        ) from error


def load_checkpoint(checkpoint: Path, learner: Learner) -> tuple[Progress, tuple[Task, ...]]:
    """Restore the learner in place; returns the run's progress and its outstanding tasks.

    Raises:
        InvalidInput: the checkpoint is of a different model, or damaged.
    """
    progress, tensors, outstanding = _read(checkpoint)
    try:
        learner.restore(tensors, progress.version, progress.num_optimizer_steps)
    except (KeyError, RuntimeError) as error:
        raise InvalidInput(
            f"checkpoint {checkpoint} does not fit the configured model ({error}); resume with the "
            "configuration that the run was started with, or choose another run.directory"
        ) from error
    return progress, outstanding


def _read(checkpoint: Path) -> tuple[Progress, dict[str, torch.Tensor], tuple[Task, ...]]:
    """The files of a checkpoint, none of which is empty when it is intact."""
    name = "progress.json"
    try:
        progress = Progress(**json.loads((checkpoint / name).read_text(encoding="utf-8")))
        name = "state.safetensors"
        tensors: dict[str, torch.Tensor] = load_file(str(checkpoint / name))
        name = "outstanding.binpb"
        return progress, tensors, wire.decode_tasks((checkpoint / name).read_bytes())
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InvalidInput(
            f"{name} of checkpoint {checkpoint} cannot be read ({error}); expected an intact "
            "checkpoint: restore it, or delete its folder to resume from the one before"
        ) from error
