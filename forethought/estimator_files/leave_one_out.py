"""The leave-one-out advantage of RLP (arXiv 2510.01265 eq. 7): A_i = G/(G-1) (r_i - mean r).

Identical to r_i minus the mean of the *other* rewards, and not divided by a standard deviation: the
price is that the size of a step follows the size of the rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

from forethought.estimators import Rewards

min_group_size = 2
"""With one thought there is no other to compare with."""


def advantages(rewards_BG: Rewards) -> list[list[float]]:
    """Centre every group; a constant added to a group's rewards changes nothing."""
    return [_of_group(rewards_G) for rewards_G in rewards_BG]


def _of_group(rewards_G: Sequence[float]) -> list[float]:
    size = len(rewards_G)
    mean = sum(rewards_G) / size
    return [size / (size - 1) * (reward - mean) for reward in rewards_G]
