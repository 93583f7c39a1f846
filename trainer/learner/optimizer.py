"""AdamW on float32 master weights, whatever dtype the forward pass uses.

Design: the model holds the compute copy, which is published bit for bit; the masters are the authoritative
float32 weights. With float32 compute they are the same tensors. The price of bf16 compute is 2 bytes
per parameter more than updating in place, for updates that bf16 alone would round away.

A gradient below float32 joins a float32 sum as soon as its micro-batch has computed it: a bf16 sum stands
still at 256 equal summands, because the next one is half its rounding step. The price is 4 bytes per
parameter for the sums instead of 2; only one micro-batch's gradient of one parameter is held beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forethought.config.sections import LearnerSection

_DECAY_SHARE = 0.3  # of the steps, at the end of warmup_stable_decay
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class MasterOptimizer:
    """Owns the master weights and the AdamW state of a model."""

    def __init__(self, model: Any, section: LearnerSection) -> None:
        self._section = section
        self._parameters = dict(model.named_parameters())
        self.masters = {
            name: p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float())
            for name, p in self._parameters.items()
        }
        for name, parameter in self._parameters.items():
            if parameter is not self.masters[name]:
                parameter.register_post_accumulate_grad_hook(_adding_to(self.masters[name]))
        # Matrices decay, vectors (norms, biases) do not: the usual AdamW practice.
        decay = [p for p in self.masters.values() if p.ndim >= 2]
        plain = [p for p in self.masters.values() if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
        self._rows: dict[str, _FastRows] = {}
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=section.learning_rate,
            betas=(section.beta1, section.beta2),
            weight_decay=section.weight_decay,
        )

    def speed_up_rows(self, model: Any, ids: Sequence[int], factor: float) -> None:
        """From now on, the embedding rows of ``ids``, and the head's, have ``factor`` times the rate."""
        tables = (model.get_input_embeddings(), model.get_output_embeddings())
        weights = {id(table.weight) for table in tables if table is not None}
        index = torch.tensor(ids, dtype=torch.long)
        self._rows = {
            name: _FastRows(self.masters[name].detach(), index.to(parameter.device), factor)
            for name, parameter in self._parameters.items()
            if id(parameter) in weights and ids
        }

    def zero_grad(self) -> None:
        """Drop all gradients and their sums."""
        for parameter in (*self._parameters.values(), *self.masters.values()):
            parameter.grad = None

    def step(self, num_steps_done: int) -> tuple[float, float]:
        """Apply the accumulated gradients; returns (gradient norm before clipping, learning rate).

        The gradients are those of every backward pass since :meth:`zero_grad`. A non-finite norm skips the
        update: weights and moments are unchanged.
        """
        norm = self._clip()
        learning_rate = self._section.learning_rate * schedule_factor(self._section, num_steps_done)
        if math.isfinite(norm):
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate
            before = [rows.values() for rows in self._rows.values()]
            self._adamw.step()
            for rows, values in zip(self._rows.values(), before, strict=True):
                rows.extend_from(values)
            self.copy_to_model()
        return norm, learning_rate

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Round the masters into the model's compute copy."""
        for name, parameter in self._parameters.items():
            if parameter is not self.masters[name]:
                parameter.copy_(self.masters[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and moments as flat named tensors, for a checkpoint."""
        tensors = {f"master/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            moments = self._adamw.state.get(master, {})
            tensors |= {f"{key}/{name}": moments[key] for key in _MOMENTS if key in moments}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state`."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"master/{name}"])
            moments = {k: tensors[f"{k}/{name}"] for k in _MOMENTS if f"{k}/{name}" in tensors}
            if moments:
                device = master.device
                self._adamw.state[master] = {
                    key: value.clone() if key == "step" else value.to(device, copy=True)
                    for key, value in moments.items()
                }
        self.copy_to_model()

    def _clip(self) -> float:
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        if not gradients:
            return 0.0
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._section.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                list(self.masters.values()), self._section.grad_clip_norm, norm
            )
        return float(norm)


@dataclass(frozen=True, slots=True)
class _FastRows:
    """Rows of a table whose updates are multiplied."""

    table: torch.Tensor
    index: torch.Tensor
    factor: float

    def values(self) -> torch.Tensor:
        return self.table[self.index]

    def extend_from(self, before: torch.Tensor) -> None:
        self.table[self.index] = before + self.factor * (self.values() - before)


def _adding_to(master: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
    """A hook that moves a compute copy's new gradient into its master's float32 sum."""

    def add(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return add


def schedule_factor(section: LearnerSection, num_steps_done: int) -> float:
    """The learning rate's multiplier after ``num_steps_done`` steps.

    A pure function, so that a resumed run needs no scheduler state. Every schedule starts with
    ``warmup_steps`` of linear warm-up; all but the constant one decay to 0 after the last update that
    ``section`` plans.
    """
    warmup = section.warmup_steps
    if num_steps_done < warmup:
        return (num_steps_done + 1) / warmup
    progress = min(1.0, (num_steps_done - warmup) / max(1, planned_updates(section) - warmup))
    if section.schedule == "linear":
        return 1.0 - progress
    if section.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if section.schedule == "warmup_stable_decay":
        return min(1.0, (1.0 - progress) / _DECAY_SHARE)
    return 1.0


def planned_updates(section: LearnerSection) -> int:
    """Optimizer steps of a whole run: one per optimizer pass over a batch, one per next-token step."""
    every = section.next_token_every_steps
    return section.steps * section.inner_epochs + (section.steps // every if every else 0)
