"""Filters: which groups and thoughts of a batch are trained on, and the penalty of truncated thoughts.

Pure functions of rewards, log-probs and thoughts; ragged, [B][G]. Order: truncated thoughts are penalised,
groups are dropped, advantages are computed from all thoughts of the remaining groups, truncated thoughts
are masked. So a masked thought still counts in its group's mean, as in DAPO (arXiv 2503.14476): it is
not an example to train on, but its reward was real.

Design: a dropped group makes the batch smaller, and the loss is the mean over the rest; the price is
that the optimizer takes as large a step on few groups as on many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forethought.config.sections import FilterSection
from forethought.types import Thought


def kept_groups(
    section: FilterSection,
    rewards_BG: Sequence[Sequence[float]],
    policy_logprobs_BG: Sequence[Sequence[float]],
) -> tuple[list[bool], dict[str, int]]:
    """Which groups pass every enabled filter, and how many groups each filter alone would drop."""
    passed: dict[str, list[bool]] = {}
    if section.zero_variance:
        passed["zero_variance"] = varied(rewards_BG)
    if section.min_reward_std:
        passed["min_reward_std"] = spread_enough(rewards_BG, section.min_reward_std)
    if section.min_logprob_std:
        passed["min_logprob_std"] = spread_enough(policy_logprobs_BG, section.min_logprob_std)
    kept = [all(passed_B[b] for passed_B in passed.values()) for b in range(len(rewards_BG))]
    dropped = {f"dropped/{name}": passed_B.count(False) for name, passed_B in passed.items()}
    return kept, dropped


def spread(values_G: Sequence[float]) -> float:
    """The population standard deviation of a group's G values; 0 for fewer than two."""
    if len(values_G) < 2:
        return 0.0
    mean = sum(values_G) / len(values_G)
    return math.sqrt(sum((value - mean) ** 2 for value in values_G) / len(values_G))


def is_flat(rewards_G: Sequence[float]) -> bool:
    """Whether two or more thoughts all have the same reward (DAPO's dynamic sampling drops such groups)."""
    return len(rewards_G) > 1 and max(rewards_G) == min(rewards_G)


def varied(rewards_BG: Sequence[Sequence[float]]) -> list[bool]:
    """Which groups have non-zero reward variance. Shape [B]."""
    return [not is_flat(rewards_G) for rewards_G in rewards_BG]


def spread_enough(values_BG: Sequence[Sequence[float]], least: float) -> list[bool]:
    """Which groups have a standard deviation of at least ``least``. Shape [B].

    On rewards, this is RLPR's filter (arXiv 2506.18254), for rewards that are never exactly equal. On
    log p(target | thought), it selects positions where thinking makes a difference, whatever the reward.
    Groups of one are kept, and so are groups without values (the objective requests no likelihoods).
    """
    return [len(values_G) < 2 or spread(values_G) >= least for values_G in values_BG]


def finished(thoughts_BG: Sequence[Sequence[Thought]]) -> list[list[bool]]:
    """Which thoughts were closed within their budget. Shape [B][G]."""
    return [[thought.closed for thought in thoughts_G] for thoughts_G in thoughts_BG]


def overlong_penalties(
    thoughts_BG: Sequence[Sequence[Thought]], budget: int, margin: int, penalty: float
) -> list[list[float]]:
    """The penalty to subtract from rewards of overlong thoughts (DAPO's soft punishment). Shape [B][G].

    The full ``penalty`` for a truncated thought, 0 up to ``budget - margin`` tokens, and linear in the
    length in between.
    """
    return [
        [penalty * _excess(thought, budget, margin) for thought in thoughts_G]
        for thoughts_G in thoughts_BG
    ]


def _excess(thought: Thought, budget: int, margin: int) -> float:
    if not thought.closed:
        return 1.0
    over = len(thought.thought_ids) - (budget - margin)
    return min(1.0, over / margin) if margin and over > 0 else 0.0
