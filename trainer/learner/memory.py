"""Estimate a learner's memory before it starts.

Design: parameters are counted on the meta device, so a 70B configuration can be estimated on a laptop.
States are exact; activations are the tensors kept for the backward pass, counted per layer of a gated MLP
and RMS norms and checked against allocations (tests/trainer/learner/test_memory.py). Measured on a CPU, in
bytes per token, layer and hidden unit, bfloat16 and float32: Llama 44 and 79, Qwen3 55 and 96, GPT-2 56 and
112, by which every other architecture is estimated. Logits peak at three float32 copies (12.0 to 12.3
bytes each), of as many as are kept for the backward pass; more are computed in smaller chunks. Tokens are
those that a micro-batch computes: what rows share counts once. The price is an upper bound: every token of
a micro-batch is taken to be trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forethought.compute.policy import planned_precision
from forethought.compute.token_logprobs import KEPT_LOGITS
from forethought.config import Settings

_LOGIT_BYTES = 12.3
_OTHER_BYTES = {2: 57.5, 4: 112.0}  # per token, layer and hidden unit, by bytes of an activation


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


def estimate_memory(settings: Settings, longest_row_tokens: int = 0) -> MemoryEstimate:
    """Count the states of the configured model and estimate its activations.

    A row longer than ``learner.micro_batch_tokens`` is a micro-batch of its own.
    """
    config = AutoConfig.from_pretrained(settings.model.path, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    num = sum(parameter.numel() for parameter in model.parameters())
    is_float32 = planned_precision(settings).dtype == "float32"
    width = 4 if is_float32 else 2
    has_baseline = settings.baseline.kind != "none"
    text = config.get_text_config()
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    layers = _layer_bytes(text, names, width) * text.num_hidden_layers
    num_tokens = max(settings.learner.micro_batch_tokens, longest_row_tokens)
    num_logits = min(text.vocab_size * num_tokens, KEPT_LOGITS)
    head_copy = 4 * text.vocab_size * text.hidden_size if settings.model.fp32_head else 0
    return MemoryEstimate(
        num_parameters=num,
        weights=width * num,
        masters=0 if is_float32 else 4 * num,
        gradients=4 * num,
        moments=8 * num,
        baseline=4 * num if has_baseline else 0,
        activations=round(layers * num_tokens + _LOGIT_BYTES * num_logits) + head_copy,
        snapshots=width * num * (2 if has_baseline else 1),
    )


def _layer_bytes(config: Any, module_names: set[str], width: int) -> float:
    """Bytes that one layer keeps per token, ``width`` being those of an activation."""
    hidden: int = config.hidden_size
    between = getattr(config, "intermediate_size", None)
    heads = getattr(config, "num_attention_heads", None)
    if "gate_proj" not in module_names or not isinstance(between, int) or not heads:
        return _OTHER_BYTES[width] * hidden
    attended = _attended(config, heads)
    normed = width + 4  # a normed vector and its float32 input
    two_norms = (
        2 * (normed + width) * hidden
    )  # and their outputs, from which queries and gates come
    query_norms = normed * attended if "q_norm" in module_names else 0
    return two_norms + query_norms + 2 * width * attended + 4 * width * between


def _attended(config: Any, heads: int) -> int:
    """The size of a token's query and key together."""
    head: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    return head * (heads + kv_heads)
