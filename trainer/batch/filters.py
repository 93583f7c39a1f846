"""Filters: which groups and thoughts of a batch are learned from, and what a truncated one is worth.

Pure functions of rewards, log-probs and thoughts; ragged, [B][G]. Order: truncated thoughts are penalised,
groups are dropped, advantages are made of all thoughts of the groups that are left, truncated thoughts are
masked. So a masked thought still counts in its group's mean, as in DAPO (arXiv 2503.14476): it is
no example to learn from, but its reward was real.

Design: a dropped group leaves the batch smaller, and the loss is the mean of what is left; the price is
that a step on few groups is as long as one on many.
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
    """Which groups pass every filter that is on, and how many each of these would drop by itself."""
    verdicts: dict[str, list[bool]] = {}
    if section.zero_variance:
        verdicts["zero_variance"] = varied(rewards_BG)
    if section.min_reward_std:
        verdicts["min_reward_std"] = spread_enough(rewards_BG, section.min_reward_std)
    if section.min_logprob_std:
        verdicts["min_logprob_std"] = spread_enough(policy_logprobs_BG, section.min_logprob_std)
    kept = [all(verdict[b] for verdict in verdicts.values()) for b in range(len(rewards_BG))]
    dropped = {f"dropped/{name}": verdict.count(False) for name, verdict in verdicts.items()}
    return kept, dropped


def spread(values_G: Sequence[float]) -> float:
    """The standard deviation of a group, over its G values; 0 for fewer than two."""
    if len(values_G) < 2:
        return 0.0
    mean = sum(values_G) / len(values_G)
    return math.sqrt(sum((value - mean) ** 2 for value in values_G) / len(values_G))


def is_flat(rewards_G: Sequence[float]) -> bool:
    """Whether several thoughts have all the same reward (DAPO's dynamic sampling drops such groups)."""
    return len(rewards_G) > 1 and max(rewards_G) == min(rewards_G)


def varied(rewards_BG: Sequence[Sequence[float]]) -> list[bool]:
    """Which groups have any variance at all. Shape [B]."""
    return [not is_flat(rewards_G) for rewards_G in rewards_BG]


def spread_enough(values_BG: Sequence[Sequence[float]], least: float) -> list[bool]:
    """Which groups have a standard deviation of at least ``least``. Shape [B].

    Of rewards: RLPR's filter (arXiv 2506.18254), for rewards that are never exactly equal. Of log p(target
    | thought): finds positions where thinking makes a difference, whatever the reward. A group of one is
    kept, and so is one without values, because its objective asks for no likelihoods.
    """
    return [len(values_G) < 2 or spread(values_G) >= least for values_G in values_BG]


def finished(thoughts_BG: Sequence[Sequence[Thought]]) -> list[list[bool]]:
    """Which thoughts were closed inside their budget. Shape [B][G]."""
    return [[thought.closed for thought in thoughts_G] for thoughts_G in thoughts_BG]


def overlong_penalties(
    thoughts_BG: Sequence[Sequence[Thought]], budget: int, margin: int, penalty: float
) -> list[list[float]]:
    """What is taken off the rewards of thoughts that are too long (DAPO's soft punishment). Shape [B][G].

    The whole ``penalty`` where the budget ran out; up to ``budget - margin`` tokens nothing, and between
    the two a share that rises linearly with the length.
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
