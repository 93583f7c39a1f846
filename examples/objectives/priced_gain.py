"""The gain of RLP (arXiv 2510.01265, eq. 5) less a price per thought token.

    reward    r(c) = log p(x | c) - log p_baseline(x) - price * max(0, |c| - free_tokens)

A thought has to earn its tokens: what adds nothing becomes short, and a longer thought is kept where it
gains more nats than it costs. ``free_tokens`` cost nothing, so that a price does not teach the model to
stop thinking before it has learned to think; raise the price in a second run.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from forethought.objectives import Group, Objective
from forethought.objectives.parts.positions import uniform
from forethought.types import Document, Position


class PricedGainConfig(BaseModel):
    """``price`` in nats per token; how many positions of a document, how many tokens to predict."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    price: Annotated[float, Field(ge=0)] = 0.02
    free_tokens: Annotated[int, Field(ge=0)] = 4
    num_positions: Annotated[int, Field(ge=1)] = 1
    target_tokens: Annotated[int, Field(ge=1)] = 1


class PricedGain(Objective):
    """Reward what a thought adds, less what it costs. Estimator, prompt and weights are RLP's."""

    Config = PricedGainConfig

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """Uniformly random places with a context before them and a whole target after."""
        return uniform(document, self.config.num_positions, self.config.target_tokens, rng)

    def rewards(self, group: Group) -> tuple[float, ...]:
        """In nats. Shape [G]."""
        costs = (
            self.config.price * max(0, len(thought.thought_ids) - self.config.free_tokens)
            for thought in group.thoughts_G
        )
        gains = (logprob - group.baseline_logprob for logprob in group.policy_logprobs_G)
        return tuple(gain - cost for gain, cost in zip(gains, costs, strict=True))
