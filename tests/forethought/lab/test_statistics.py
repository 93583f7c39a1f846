"""pass@k by enumeration, coverage of intervals, and keywords as whole words."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from forethought.errors import InvalidInput
from forethought.lab.evaluation.pass_at_k import checked, pass_at_k, usual_k
from forethought.lab.evaluation.patterns import KEYWORDS, count_patterns, pattern_rates
from forethought.lab.statistics import BootstrapInterval


@pytest.mark.parametrize(("num_right", "k"), [(0, 1), (1, 1), (2, 3), (3, 2), (5, 2), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(num_right: int, k: int) -> None:
    right = [True] * num_right + [False] * (6 - num_right)
    draws = [any(draw) for draw in combinations(right, k)]
    assert pass_at_k(num_right, 6, k) == pytest.approx(sum(draws) / len(draws))


def test_k_is_at_most_the_group() -> None:
    assert usual_k(8) == (1, 2, 4, 8)
    assert usual_k(6) == (1, 2, 4, 6)
    assert checked((4, 1, 4), 8) == (1, 4)
    for k in (0, 9):
        with pytest.raises(InvalidInput, match=r"pass@\d of 8 thoughts; expected k from 1 to 8"):
            checked((k,), 8)


def test_the_interval_is_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    interval = BootstrapInterval.of(values, seed=1)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05)
    assert interval == BootstrapInterval.of(values, seed=1) != BootstrapInterval.of(values, seed=2)


def test_intervals_have_their_nominal_coverage() -> None:
    generator = np.random.default_rng(7)
    samples = generator.exponential(1.0, (200, 80))
    found = [BootstrapInterval.of(sample, seed=0) for sample in samples]
    covered = sum(i.low <= 1.0 <= i.high for i in found) / len(found)
    assert 0.88 <= covered <= 0.985  # 0.95, less a little for a skewed law and 80 positions


def test_paired_intervals_are_narrower_than_unpaired_ones() -> None:
    generator = np.random.default_rng(3)
    first = generator.normal(0, 5, 300)
    other = first + 0.3 + generator.normal(0, 0.1, 300)
    pair = BootstrapInterval.of(other - first, seed=0)
    assert 0.25 < pair.low < 0.3 < pair.high < 0.35
    assert BootstrapInterval.of(other, seed=0).low < 0 < BootstrapInterval.of(other, seed=0).high


def test_patterns_are_whole_words_in_any_case() -> None:
    text = "Wait, the options, etc.; it is PROBABLY so. Finally: awaiting, neither, conclusions."
    assert count_patterns(text) == {
        "transition": 0, "reflection": 1, "breakdown": 0, "hypothesis": 1,
        "divergent_thinking": 2, "deduction": 1,
    }  # fmt: skip
    assert count_patterns("break down; let us break this down")["breakdown"] == 2
    assert set(KEYWORDS) == set(count_patterns(""))


def test_rates_are_per_thought_and_per_token() -> None:
    counts = [count_patterns(text) for text in ("wait, wait", "wait", "no", "something like it")]
    rates = pattern_rates(counts, num_tokens=50)
    assert rates.per_thought["reflection"] == 0.5
    assert rates.per_1000_tokens["reflection"] == pytest.approx(60.0)
    assert rates.per_thought["hypothesis"] == 0.25
    assert rates.per_thought["deduction"] == rates.per_1000_tokens["deduction"] == 0
