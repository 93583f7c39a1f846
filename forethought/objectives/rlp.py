"""RLP, reinforcement as a pretraining objective (arXiv 2510.01265, version 2).

Reward, eq. 5:   r(c) = log p_policy(x_t | x_<t, c) - log p_baseline(x_t | x_<t)
Advantage, eq. 7: A_i = G/(G-1) (r_i - mean r), the leave-one-out advantage, no standard deviation.
Loss, eq. 8:     per-thought mean of the clipped surrogate, then the mean over B groups and G thoughts.

Design: the no-think baseline is the same number for all G thoughts of a position, so it cancels in A
exactly; it is computed because the reported information gain is this reward. As published, one position
per document is drawn uniformly and the target is one token; ``target_tokens`` > 1 sums the
teacher-forced log-probs.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from forethought.objectives import positions
from forethought.objectives.base import Group, Objective
from forethought.types import Document, Position


class RlpConfig(BaseModel):
    """Where to think and how far to look ahead.

    Example:
        ``RlpConfig(positions="marked", num_positions=1, target_tokens=1)``
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: Literal["uniform", "marked"] = "uniform"
    num_positions: Annotated[int, Field(ge=1)] = 1
    target_tokens: Annotated[int, Field(ge=1)] = 1


class Rlp(Objective):
    """Reward a thought by the information it adds about the next token."""

    Config = RlpConfig

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """One uniformly random position per document, or those the corpus marked."""
        select = positions.uniform if self.config.positions == "uniform" else positions.marked
        return select(document, self.config.num_positions, self.config.target_tokens, rng)

    def rewards(self, group: Group) -> tuple[float, ...]:
        """The log-likelihood ratio of eq. 5, in nats. Shape [G]."""
        return tuple(logprob - group.baseline_logprob for logprob in group.policy_logprobs_G)
