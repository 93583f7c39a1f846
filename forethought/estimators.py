"""Advantage estimators: pure functions from the rewards of a batch to its advantages.

    leave_one_out  A_i = G/(G-1) (r_i - mean of group)                RLP (arXiv 2510.01265 eq. 7)
    group_std      A_i = (r_i - mean of group) / (std of group + e)   GRPO (arXiv 2402.03300)
    batch_std      A_i = (r_i - mean of group) / (std of batch + e)   arXiv 2508.08221
    batch_zscore   A_i = (r_i - mean of batch) / (std of batch + e)
    none           A_i = r_i                                          REINFORCE

e is 1e-6; standard deviations have n - 1 in their denominator, as the trainer that RPT was trained with
computes them. Equal rewards give advantages of 0, but for ``none``.

Design: estimators stand apart from objectives, because some need the whole batch, which only the learner
has. What each costs: without a standard deviation (``leave_one_out``) the size of a step follows the size
of the rewards. With the group's own (``group_std``) every group pulls equally hard, also one whose rewards
hardly differ: noise is scaled up to the size of a signal, which ``filter.min_reward_std`` is for. With the
batch's (``batch_std``) no single group sets the scale, but rewards that carry a number of their position,
such as a log-likelihood, do. ``batch_zscore`` compares positions with each other, so a group of one will do
and a position whose thoughts are all good is reinforced as a whole; the variance between positions, which a
group's mean removes, is then left to the reward's baseline, which matters here. ``none`` has only that
baseline: where EMA, frozen and current baselines of RLP's log-ratio part ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forethought.errors import InvalidInput

Rewards = Sequence[Sequence[float]]
"""Rewards of every group of a batch, ragged: [B][G]."""

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Estimator:
    """``advantages(rewards_BG) -> advantages_BG``, one finite number per reward in the same ragged shape.

    ``min_group_size`` is the least G it is defined for: one thought has no other to be compared with.

    Example:
        ``load("leave_one_out").advantages([(0.0, 1.0)]) == [[-1.0, 1.0]]``
    """

    advantages: Callable[[Rewards], list[list[float]]]
    min_group_size: int


def names() -> list[str]:
    """Every estimator there is."""
    return sorted(_ESTIMATORS)


def load(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        InvalidInput: there is none of that name.
    """
    if name not in _ESTIMATORS:
        raise InvalidInput(f"no estimator {name!r}; expected one of {', '.join(names())}")
    return _ESTIMATORS[name]


def _leave_one_out(rewards_BG: Rewards) -> list[list[float]]:
    """Identical to each reward minus the mean of the *others*."""
    return [
        [len(rewards_G) / (len(rewards_G) - 1) * value for value in _centred(rewards_G)]
        for rewards_G in rewards_BG
    ]


def _group_std(rewards_BG: Rewards) -> list[list[float]]:
    return [_scaled(_centred(rewards_G), _std(rewards_G) + EPSILON) for rewards_G in rewards_BG]


def _batch_std(rewards_BG: Rewards) -> list[list[float]]:
    scale = _std(_flat(rewards_BG)) + EPSILON
    return [_scaled(_centred(rewards_G), scale) for rewards_G in rewards_BG]


def _batch_zscore(rewards_BG: Rewards) -> list[list[float]]:
    rewards = _flat(rewards_BG)
    mean, scale = sum(rewards) / max(1, len(rewards)), _std(rewards) + EPSILON
    return [[(reward - mean) / scale for reward in rewards_G] for rewards_G in rewards_BG]


def _none(rewards_BG: Rewards) -> list[list[float]]:
    return [list(rewards_G) for rewards_G in rewards_BG]


def _flat(rewards_BG: Rewards) -> list[float]:
    return [reward for rewards_G in rewards_BG for reward in rewards_G]


def _centred(rewards: Sequence[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def _scaled(values: Sequence[float], scale: float) -> list[float]:
    return [value / scale for value in values]


def _std(rewards: Sequence[float]) -> float:
    """About the mean of ``rewards``, with n - 1 in the denominator; 0 of fewer than two."""
    if len(rewards) < 2:
        return 0.0
    return math.sqrt(sum(value * value for value in _centred(rewards)) / (len(rewards) - 1))


_ESTIMATORS = {
    "leave_one_out": Estimator(_leave_one_out, min_group_size=2),
    "group_std": Estimator(_group_std, min_group_size=2),
    "batch_std": Estimator(_batch_std, min_group_size=2),
    "batch_zscore": Estimator(_batch_zscore, min_group_size=1),
    "none": Estimator(_none, min_group_size=1),
}
