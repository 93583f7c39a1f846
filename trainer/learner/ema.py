"""The no-think baseline: an exponential moving average of the policy (RLP Algorithm 1).

    phi <- decay * phi + (1 - decay) * theta     after every optimizer step, phi_0 = theta_0

Design: the learner keeps it in float32, because it is a function of optimizer steps and a service that
missed a push would compute a different one. The price is four bytes per parameter; ``none`` saves them
and lets the scorer use the current policy, which gives the same gradient in published RLP.
"""

from __future__ import annotations

import torch

from forethought.config.sections import BaselineSection


class Baseline:
    """EMA (or frozen copy) of the master weights, by name."""

    def __init__(self, section: BaselineSection, masters: dict[str, torch.nn.Parameter]) -> None:
        self._section = section
        self.tensors = {
            name: master.detach().clone()
            for name, master in masters.items()
            if section.kind != "none"
        }

    @property
    def exists(self) -> bool:
        """False for kind ``none``."""
        return bool(self.tensors)

    @torch.no_grad()
    def update(self, masters: dict[str, torch.nn.Parameter]) -> None:
        """One EMA update; a frozen baseline is unchanged."""
        if self._section.kind != "ema":
            return
        for name, average in self.tensors.items():
            average.lerp_(masters[name].detach(), 1.0 - self._section.decay)

    def state(self) -> dict[str, torch.Tensor]:
        """Flat named tensors, for a checkpoint."""
        return {f"baseline/{name}": tensor for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of :meth:`state`."""
        for name, average in self.tensors.items():
            average.copy_(tensors[f"baseline/{name}"])
