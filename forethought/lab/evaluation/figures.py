"""The metrics of a split: means over its positions, intervals, and differences between models.

Design: a model's results are first one number per position (:class:`Measurements`), over the positions of
all splits; a split only selects among them. So metrics of nested splits are consistent, and two models
are compared position by position. The price: thoughts are averaged per position first, so every position
counts the same, however long its thoughts are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forethought.lab.evaluation.pass_at_k import pass_at_k
from forethought.lab.evaluation.patterns import count_patterns, pattern_rates
from forethought.lab.statistics import BootstrapInterval

if TYPE_CHECKING:
    from forethought.compute.answers import Answer

COMPARED = (
    "think_accuracy",
    "no_think_accuracy",
    "reward_share",
    "think_nll",
    "marginal_nll",
    "no_think_nll",
    "information_gain",
    "logprob_std",
)
"""The metrics reported per split as a mean and compared between models."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """One model's results at Q positions with G thoughts each.

    ``values_Q`` holds an array [Q] for each of :data:`COMPARED` that was measured. ``right_Q`` counts the
    thoughts after which the target was the likeliest token, ``rewarded_Q`` those followed by a correct
    prediction (empty if the objective samples no predictions).

    Example:
        ``measurements_of(answers, texts, rewarded_Q).values_Q["information_gain"].mean()``
    """

    values_Q: dict[str, Any]
    right_Q: tuple[int, ...]
    rewarded_Q: tuple[int, ...]
    lengths_QG: tuple[tuple[int, ...], ...]
    stopped_QG: tuple[tuple[bool, ...], ...]
    patterns_QG: tuple[tuple[dict[str, int], ...], ...]

    @property
    def num_thoughts(self) -> int:
        """G."""
        return len(self.lengths_QG[0])


def measurements_of(
    answers_Q: Sequence[Answer],
    texts_QG: Sequence[Sequence[str]],
    rewarded_Q: Sequence[int],
) -> Measurements:
    """The measurements of a model's answers with thought texts ``texts_QG``.

    An empty ``rewarded_Q`` means that no predictions were graded.
    """
    from forethought.compute.answers import thought_ids

    num_thoughts = len(answers_Q[0].thoughts_G)
    values = {
        "think_accuracy": [answer.num_right / num_thoughts for answer in answers_Q],
        "no_think_accuracy": [float(answer.is_right_without) for answer in answers_Q],
        "think_nll": [answer.think_nll for answer in answers_Q],
        "marginal_nll": [answer.marginal_nll for answer in answers_Q],
        "no_think_nll": [answer.no_think_nll for answer in answers_Q],
        "information_gain": [answer.information_gain for answer in answers_Q],
        "logprob_std": [answer.logprob_std for answer in answers_Q],
    }
    if rewarded_Q:
        values["reward_share"] = [num / num_thoughts for num in rewarded_Q]
    counted = {text: count_patterns(text) for texts_G in texts_QG for text in texts_G}
    return Measurements(
        {name: np.asarray(values[name]) for name in COMPARED if name in values},
        tuple(answer.num_right for answer in answers_Q),
        tuple(rewarded_Q),
        tuple(tuple(len(thought_ids(t)) for t in answer.thoughts_G) for answer in answers_Q),
        tuple(tuple(thought.stopped for thought in answer.thoughts_G) for answer in answers_Q),
        tuple(tuple(counted[text] for text in texts_G) for texts_G in texts_QG),
    )


def split_figures(
    measured: Measurements, members: Sequence[int], k_list: Sequence[int], seed: int
) -> dict[str, Any]:
    """The metrics over the positions ``members``, in the format of eval.json: plain numbers by name."""
    chosen = list(members)
    means = {name: float(values[chosen].mean()) for name, values in measured.values_Q.items()}
    gain = BootstrapInterval.of(measured.values_Q["information_gain"][chosen], seed)
    return {
        "num_positions": len(chosen),
        **means,
        "information_gain_low": gain.low,
        "information_gain_high": gain.high,
        "pass_at": _passing(measured.right_Q, chosen, measured.num_thoughts, k_list),
        **(
            {"reward_pass_at": _passing(measured.rewarded_Q, chosen, measured.num_thoughts, k_list)}
            if measured.rewarded_Q
            else {}
        ),
        **_thought_figures(measured, chosen),
    }


def differences(
    first: Measurements, other: Measurements, members: Sequence[int], seed: int
) -> dict[str, dict[str, float]]:
    """``other`` minus ``first`` at the same positions: means with paired bootstrap intervals."""
    chosen = list(members)
    return {
        name: asdict(BootstrapInterval.of(values[chosen] - first.values_Q[name][chosen], seed))
        for name, values in other.values_Q.items()
    }


def _passing(
    right_Q: Sequence[int], members: Sequence[int], num_thoughts: int, k_list: Sequence[int]
) -> dict[str, float]:
    return {
        str(k): sum(pass_at_k(right_Q[q], num_thoughts, k) for q in members) / len(members)
        for k in k_list
    }


def _thought_figures(measured: Measurements, members: Sequence[int]) -> dict[str, Any]:
    """Length, truncation and reasoning patterns, over all thoughts of the positions."""
    lengths = sorted(length for q in members for length in measured.lengths_QG[q])
    stopped = [stopped for q in members for stopped in measured.stopped_QG[q]]
    patterns = [counts for q in members for counts in measured.patterns_QG[q]]
    return {
        "thought_tokens_mean": sum(lengths) / len(lengths),
        "thought_tokens_p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
        "truncated_share": 1 - sum(stopped) / len(stopped),
        "patterns": asdict(pattern_rates(patterns, sum(lengths))),
    }
