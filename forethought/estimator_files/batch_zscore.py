"""The z-score over the batch: A_i = (r_i - mean) / (std + epsilon), mean and deviation of all rewards.

Design: groups do not matter, so a group of one will do, and a position whose thoughts are all better
than those elsewhere is reinforced as a whole. The price is the variance between positions, which a
group's own mean takes out: with RLP's rewards the no-think baseline takes out most of it instead, and
therefore matters here.
"""

from __future__ import annotations

import math

from forethought.estimators import Rewards

min_group_size = 1
"""A lone thought is compared with those of other positions."""

EPSILON = 1e-6


def advantages(rewards_BG: Rewards) -> list[list[float]]:
    """Standardise all rewards together; equal rewards, and a batch of one, give 0."""
    rewards = [reward for rewards_G in rewards_BG for reward in rewards_G]
    mean = sum(rewards) / max(1, len(rewards))
    squares = sum((reward - mean) ** 2 for reward in rewards)
    scale = math.sqrt(squares / max(1, len(rewards) - 1)) + EPSILON
    return [[(reward - mean) / scale for reward in rewards_G] for rewards_G in rewards_BG]
