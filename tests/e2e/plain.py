"""Plain transformers computations on a checkpoint, sharing no code with scorer and sampler."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from forethought.compute.weights import named_weights, serialise
from forethought.types import ScoredRollout, Thought


@lru_cache(maxsize=4)
def load(model: Path, which: str = "policy") -> Any:
    """A checkpoint's model loaded with plain transformers, optionally with its baseline's weights."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if which == "baseline":
        state = load_file(model.parent / "state.safetensors")
        averaged = {n.removeprefix("baseline/"): t for n, t in state.items() if "baseline/" in n}
        assert averaged.keys() == dict(loaded.named_parameters()).keys()
        loaded.load_state_dict(averaged, strict=False)
    return loaded.eval()


def policy_sha256(model: Path) -> str:
    """The hash of the payload that a learner with this checkpoint publishes."""
    return hashlib.sha256(serialise(named_weights(load(model)))).hexdigest()


def baseline_sha256(model: Path) -> str:
    """The hash of the baseline's payload."""
    return hashlib.sha256(serialise(named_weights(load(model, "baseline")))).hexdigest()


def score_item(result: ScoredRollout) -> dict[str, Any]:
    """A journalled group as an item of ``POST /v1/score``."""
    task = result.rollout.task
    (position,), (thoughts,) = task.positions_K, result.rollout.thoughts_KG
    return {
        "id": task.task_id,
        "context_ids": list(task.document.token_ids_N[: position.index]),
        "target_ids": list(position.target_ids_H),
        "thoughts": [list(thought.token_ids_L) for thought in thoughts],
    }


@torch.no_grad()
def likelihoods(model: Path, result: ScoredRollout) -> tuple[list[float], float]:
    """log p(target | context, thought) of every thought, and log p(target | context) without."""
    task = result.rollout.task
    (position,), (thoughts,) = task.positions_K, result.rollout.thoughts_KG
    (target,) = position.target_ids_H
    context = task.document.token_ids_N[: position.index]
    (open_id,), (close_id,) = task.prompting.bridge_ids, task.prompting.close_ids

    def after(thought: Thought) -> float:
        closing = () if thought.closed else (close_id,)
        ids = (*context, open_id, *thought.token_ids_L, *closing)
        logits = load(model)(torch.tensor([ids])).logits[0, -1]
        return float(torch.log_softmax(logits, dim=-1)[target])

    logits = load(model, "baseline")(torch.tensor([context])).logits[0, -1]
    logits[open_id] = -torch.inf
    return [after(thought) for thought in thoughts], float(logits.log_softmax(dim=-1)[target])
