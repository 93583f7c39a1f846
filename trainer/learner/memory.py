"""Estimate a learner's memory before it starts.

Design: parameters are counted on the meta device, so a 70B configuration can be estimated on a laptop.
States are exact; activations are a rough 34 bytes x tokens x hidden x layers at 16 bit (Korthikanti et al.,
arXiv 2205.05198, without the attention matrix) plus the float32 logits of the trained tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forethought.config import Settings

_ACTIVATION_BYTES = {"bfloat16": 34, "float32": 68}


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose.

    Example:
        ``MemoryEstimate(106_880, weights=427_520, masters=0, gradients=427_520, …)``
    """

    num_parameters: int
    weights: int
    masters: int
    gradients: int
    moments: int
    baseline: int
    activations: int
    snapshots: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return (
            self.weights
            + self.masters
            + self.gradients
            + self.moments
            + self.baseline
            + self.activations
            + self.snapshots
        )


def estimate_memory(settings: Settings) -> MemoryEstimate:
    """Count the states of the configured model and estimate its activations."""
    config = AutoConfig.from_pretrained(settings.model.path, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    num = sum(parameter.numel() for parameter in model.parameters())
    is_float32 = settings.model.dtype == "float32"
    width = 4 if is_float32 else 2
    has_baseline = settings.baseline.kind != "none"
    hidden = config.hidden_size * config.num_hidden_layers
    per_token = _ACTIVATION_BYTES[settings.model.dtype] * hidden + 8 * config.vocab_size
    return MemoryEstimate(
        num_parameters=num,
        weights=width * num,
        masters=0 if is_float32 else 4 * num,
        gradients=width * num + (0 if is_float32 else 4 * num),
        moments=8 * num,
        baseline=4 * num if has_baseline else 0,
        activations=per_token * settings.learner.micro_batch_tokens,
        snapshots=width * num * (2 if has_baseline else 1),
    )
