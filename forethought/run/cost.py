"""The cost of a run: tokens and FLOPs, computed from its metrics by one formula used everywhere.

    tokens  sampled + learned                        every full row, context included
    FLOPs   2 P (sampled + scored) + 6 P learned     P parameters; attention over positions left out

    sampled  every thought, also of samples that a filter dropped, a replacement replaced or scoring failed
    scored   rows whose likelihoods gave rewards or filters
    learned  rows of every optimizer pass (learner.inner_epochs times), skipped passes and interleaved
             next-token steps included; what learner.max_tokens limits

    Not counted: tasks whose result never arrived, and measurements (learner.no_think_every_steps).

Design: rows are counted without prefix sharing (a group's context once per thought), so a run is charged
the most it could have cost, the same whether or not its model can share, and its compute-matched next-token
controls get no less than they are due. The price: sampler, scorer and learner share prefixes, and compute
a fraction of what is reported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from forethought.errors import InvalidInput
from forethought.run.checkpoints import Checkpoint

Unit = Literal["flops", "tokens", "steps"]

_FORWARD, _FORWARD_AND_BACKWARD = 2, 6


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens by use: sampled, scored, trained on.

    Example:
        ``Cost(sampled_tokens=580_000, scored_tokens=690_000, learned_tokens=540_000)``
    """

    sampled_tokens: int = 0
    scored_tokens: int = 0
    learned_tokens: int = 0

    @property
    def tokens(self) -> int:
        """The tokens that count towards a token budget."""
        return self.sampled_tokens + self.learned_tokens

    @property
    def flops_per_parameter(self) -> int:
        """FLOPs divided by the number of parameters."""
        forward = self.sampled_tokens + self.scored_tokens
        return _FORWARD * forward + _FORWARD_AND_BACKWARD * self.learned_tokens

    @property
    def tokens_to_learn_for_flops(self) -> int:
        """The number of tokens that next-token training could use for the same FLOPs."""
        return self.flops_per_parameter // _FORWARD_AND_BACKWARD

    def to_dict(self, num_parameters: int) -> dict[str, int]:
        """All counts by name."""
        return {
            "sampled_tokens": self.sampled_tokens,
            "scored_tokens": self.scored_tokens,
            "learned_tokens": self.learned_tokens,
            "tokens": self.tokens,
            "flops": self.flops_per_parameter * num_parameters,
        }


def cost_of(metrics: Sequence[Mapping[str, Any]]) -> Cost:
    """The cost of a run from the lines of its ``metrics.jsonl``."""
    return Cost(
        sampled_tokens=sum(row.get("sampled_tokens", 0) for row in metrics),
        scored_tokens=sum(row.get("scored_tokens", 0) for row in metrics),
        learned_tokens=metrics[-1]["tokens"] if metrics else 0,
    )


def compute_of(checkpoint: Checkpoint, unit: Unit, num_parameters: int) -> float | None:
    """The training compute behind a checkpoint; 0 for a run's initial model, None outside a run.

    ``tokens`` are those trained on, ``steps`` the optimizer steps that closed a batch.

    Raises:
        InvalidInput: the run's metrics have no line for the checkpoint's step, or damaged lines.
    """
    if checkpoint.run is None or checkpoint.step is None:
        return None
    if checkpoint.step == 0 or unit == "steps":
        return float(checkpoint.step)
    rows = [row for row in checkpoint.run.read_metrics() if row["step"] <= checkpoint.step]
    if not rows or rows[-1]["step"] != checkpoint.step or "tokens" not in rows[-1]:
        raise InvalidInput(
            f"{checkpoint.run.metrics} has no tokens for step {checkpoint.step} of {checkpoint.label}; "
            "expected the metrics of its own run: use --compute steps"
        )
    if num_damaged := checkpoint.run.num_damaged_metrics():
        raise InvalidInput(
            f"{num_damaged} lines of {checkpoint.run.metrics} hold no step, so its tokens cannot be "
            "counted; expected intact metrics: use --compute steps"
        )
    cost = cost_of(rows)
    flops = cost.flops_per_parameter * num_parameters
    return float(cost.learned_tokens if unit == "tokens" else flops)
