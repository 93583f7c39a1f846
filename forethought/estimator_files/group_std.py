"""The advantage of GRPO (arXiv 2402.03300): A_i = (r_i - mean r) / (std r + epsilon), in every group.

Design: mean and standard deviation are the group's own, the latter with G - 1 in its denominator and
epsilon = 1e-6, as the trainer that RPT was trained with computes them. Every group then pulls equally
hard, also one whose rewards hardly differ: the price is that noise is scaled up to the size of a signal,
which `filter.min_reward_std` is there for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forethought.estimators import Rewards

min_group_size = 2
"""One thought has no spread."""

EPSILON = 1e-6


def advantages(rewards_BG: Rewards) -> list[list[float]]:
    """Centre every group and divide it by its own spread; equal rewards give 0."""
    return [_of_group(rewards_G) for rewards_G in rewards_BG]


def _of_group(rewards_G: Sequence[float]) -> list[float]:
    mean = sum(rewards_G) / len(rewards_G)
    squares = sum((reward - mean) ** 2 for reward in rewards_G)
    scale = math.sqrt(squares / (len(rewards_G) - 1)) + EPSILON
    return [(reward - mean) / scale for reward in rewards_G]
