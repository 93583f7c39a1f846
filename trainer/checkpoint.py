"""Checkpoints: everything a new learner needs to resume, written atomically.

    step-000040/model/             the policy as published, for AutoModelForCausalLM
    step-000040/state.safetensors  master weights, moments, baseline, random state
    step-000040/progress.json      counters, corpus cursor, epoch
    step-000040/outstanding.binpb  the tasks that were admitted and not yet trained on

Design: written under a temporary name and renamed once complete and flushed to disk; tensors are
safetensors, not pickle, so that reading a checkpoint never runs code. The price is that everything
passes through one process; sharded state will need one file per rank.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from forethought import wire
from forethought.errors import InvalidInput
from forethought.run.directory import RunDirectory
from forethought.types import Task
from trainer.learner.learner import Learner


@dataclass(frozen=True, slots=True)
class Progress:
    """A run's progress. ``num_steps`` counts closed batches; versions and optimizer steps are counted
    separately.

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


def save_checkpoint(
    directory: RunDirectory,
    learner: Learner,
    progress: Progress,
    outstanding: Sequence[Task],
    keep: int,
) -> Path:
    """Write the checkpoint of ``progress.num_steps`` and delete all but the newest ``keep``."""
    final = directory.checkpoint(progress.num_steps)
    if final.exists():
        return final  # a resumed run that stops before its next step has nothing new to save
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    learner.language_model.model.save_pretrained(partial / "model")
    learner.language_model.tokenizer.save_pretrained(partial / "model")
    state = {name: tensor.detach().cpu().clone() for name, tensor in learner.state().items()}
    save_file(state, str(partial / "state.safetensors"))
    (partial / "outstanding.binpb").write_bytes(wire.encode_tasks(outstanding))
    (partial / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    _flush(partial)
    partial.rename(final)
    for old in directory.complete_checkpoints()[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(checkpoint: Path, learner: Learner) -> tuple[Progress, tuple[Task, ...]]:
    """Restore the learner in place; returns the run's progress and its outstanding tasks.

    Raises:
        InvalidInput: the checkpoint is of a different model.
    """
    progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    tensors: dict[str, torch.Tensor] = load_file(str(checkpoint / "state.safetensors"))
    try:
        learner.restore(tensors, progress.version, progress.num_optimizer_steps)
    except (KeyError, RuntimeError) as error:
        raise InvalidInput(
            f"checkpoint {checkpoint} does not fit the configured model ({error}); resume with the "
            "configuration that the run was started with, or choose another run.directory"
        ) from error
    return progress, wire.decode_tasks((checkpoint / "outstanding.binpb").read_bytes())


def _flush(directory: Path) -> None:
    """Flush the files to disk before the rename makes them visible."""
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
