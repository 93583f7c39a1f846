"""The training compute behind a checkpoint, from what its run wrote down.

    steps    optimizer steps that closed a batch
    tokens   of the rows that were learned from, as metrics.jsonl counts them
    flops    tokens x parameters x (6 to learn + 2 to sample a thought + 2 where the policy scores)

Design: the usual 2 P per token forward and 6 P forward and backward, P being all parameters. Every row
counts once each time: what a sampler computes again, the baseline's short rows and attention's own cost are
left out. The price is a figure that is right in proportion along one run, which is what a law is fitted to,
and only roughly between runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forethought.errors import InvalidInput
from forethought.objectives import Objective
from forethought.run.checkpoints import Checkpoint

Unit = Literal["flops", "tokens", "steps"]
_LEARN, _FORWARD = 6, 2


@dataclass(frozen=True, slots=True)
class Price:
    """What a token of training costs, and in which unit compute is told.

    Example:
        ``Price.of(objective, num_parameters=120_000, unit="flops").flops_per_token``
    """

    unit: Unit
    flops_per_token: float

    @classmethod
    def of(cls, objective: Objective, num_parameters: int, unit: Unit) -> Price:
        """Of a run with this objective on a model of that size."""
        sampled = _FORWARD * objective.thinks
        scored = _FORWARD * (objective.thinks and "policy" in objective.models)
        return cls(unit, num_parameters * (_LEARN + sampled + scored))


def compute_of(checkpoint: Checkpoint, price: Price) -> float | None:
    """The compute spent on a checkpoint; 0 for what a run began with, None outside of runs.

    Raises:
        InvalidInput: the run's metrics have no line of the checkpoint's step.
    """
    if checkpoint.run is None or checkpoint.step is None:
        return None
    if checkpoint.step == 0 or price.unit == "steps":
        return float(checkpoint.step)
    tokens = {row["step"]: row.get("tokens") for row in checkpoint.run.read_metrics()}
    found = tokens.get(checkpoint.step)
    if found is None:
        raise InvalidInput(
            f"{checkpoint.run.metrics} has no tokens for step {checkpoint.step} of {checkpoint.label}; "
            "expected the metrics of its own run: use --compute steps"
        )
    return float(found) * (price.flops_per_token if price.unit == "flops" else 1.0)
