"""No estimator: the advantage is the reward as it is, A_i = r_i (plain REINFORCE).

Design: whatever baseline there is has to be in the reward, and then it matters: this is where EMA,
frozen and current baselines of RLP's log-ratio part ways. The price is variance, and rewards that are
all of one sign push everything that was sampled the same way.
"""

from __future__ import annotations

from forethought.estimators import Rewards

min_group_size = 1
"""Nothing is compared."""


def advantages(rewards_BG: Rewards) -> list[list[float]]:
    """The rewards themselves."""
    return [list(rewards_G) for rewards_G in rewards_BG]
