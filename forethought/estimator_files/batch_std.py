"""Group mean, batch standard deviation (arXiv 2508.08221): A_i = (r_i - mean of group) / (std + epsilon).

The deviation is that of all rewards of the batch about their common mean.

Design: what a group compares stays inside the group, what a step is worth does not hang on one group's
luck. The price: with rewards that carry a number of their position, such as a log-likelihood, the
deviation between positions sets the scale, and a baseline that moves rewards of whole groups changes the
size of the step (not its direction).
"""

from __future__ import annotations

import math

from forethought.estimators import Rewards

min_group_size = 2
"""One thought is its group's mean."""

EPSILON = 1e-6


def advantages(rewards_BG: Rewards) -> list[list[float]]:
    """Centre every group, divide all of them by one number; equal rewards give 0."""
    scale = _deviation([reward for rewards_G in rewards_BG for reward in rewards_G]) + EPSILON
    return [
        [(reward - sum(rewards_G) / len(rewards_G)) / scale for reward in rewards_G]
        for rewards_G in rewards_BG
    ]


def _deviation(rewards: list[float]) -> float:
    if len(rewards) < 2:
        return 0.0
    mean = sum(rewards) / len(rewards)
    return math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
