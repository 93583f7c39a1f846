"""Every estimator of the folder, against numbers worked out by hand and by the statistics module."""

from __future__ import annotations

import math
import statistics

import pytest

from forethought import estimators, objectives
from forethought.config import Settings, load_settings
from forethought.errors import InvalidInput
from forethought.preflight import check_run, load_estimator

# By hand. Groups (1, 3) and (0, 0, 6): means 2 and 2, deviations sqrt(2) and sqrt(24 / 2) = 2 sqrt(3);
# the batch (1, 3, 0, 0, 6): mean 2, squares 1 + 1 + 4 + 4 + 16 = 26, deviation sqrt(26 / 4).
REWARDS_BG = [[1.0, 3.0], [0.0, 0.0, 6.0]]
OF_BATCH = math.sqrt(6.5)
GOLDEN = {
    "leave_one_out": [[-2.0, 2.0], [-3.0, -3.0, 6.0]],
    "group_std": [
        [-1 / math.sqrt(2), 1 / math.sqrt(2)],
        [-1 / math.sqrt(3), -1 / math.sqrt(3), 2 / math.sqrt(3)],
    ],
    "batch_std": [
        [-1 / OF_BATCH, 1 / OF_BATCH],
        [-2 / OF_BATCH, -2 / OF_BATCH, 4 / OF_BATCH],
    ],
    "batch_zscore": [
        [-1 / OF_BATCH, 1 / OF_BATCH],
        [-2 / OF_BATCH, -2 / OF_BATCH, 4 / OF_BATCH],
    ],
    "none": REWARDS_BG,
}
RAGGED_BG = [[0.5, -1.25, 3.0], [2.0, 2.5], [1.0, -7.0, 4.0, 0.1, 7.0]]
NAMES = estimators.names()


def flat(values_BG: list[list[float]]) -> list[float]:
    return [value for values_G in values_BG for value in values_G]


def test_every_estimator_has_a_golden_case() -> None:
    assert set(NAMES) == set(GOLDEN)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    got = estimators.load(name).advantages(REWARDS_BG)
    assert [len(group) for group in got] == [2, 3]
    assert flat(got) == pytest.approx(flat(GOLDEN[name]), abs=5e-6)  # epsilon is 1e-6


def test_the_mean_and_the_deviation_of_groups_and_batch_differ() -> None:
    """In the golden case both groups have the batch's mean; here nothing coincides."""
    everything = flat(RAGGED_BG)
    mean, deviation = statistics.mean(everything), statistics.stdev(everything)
    expected = {
        "group_std": [
            (r - statistics.mean(group)) / statistics.stdev(group)
            for group in RAGGED_BG
            for r in group
        ],
        "batch_std": [
            (r - statistics.mean(group)) / deviation for group in RAGGED_BG for r in group
        ],
        "batch_zscore": [(r - mean) / deviation for r in everything],
    }
    for name, values in expected.items():
        got = flat(estimators.load(name).advantages(RAGGED_BG))
        assert got == pytest.approx(values, abs=1e-5), name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7])
def test_equal_rewards_teach_nothing(name: str, reward: float) -> None:
    got = estimators.load(name).advantages([[reward] * 3, [reward] * 7])
    assert flat(got) == pytest.approx([0.0] * 10, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_group_is_served_and_nothing_is_an_empty_batch(name: str) -> None:
    estimator = estimators.load(name)
    (advantages_G,) = estimator.advantages([[0.5] * estimator.min_group_size])
    assert all(map(math.isfinite, advantages_G))
    assert estimator.advantages([]) == []


@pytest.mark.parametrize(
    ("name", "follows"),
    [("leave_one_out", False), ("group_std", False), ("batch_std", True), ("none", True)],
)
def test_who_sees_a_number_that_is_added_to_one_group(name: str, follows: bool) -> None:
    """RLP's no-think baseline is such a number."""
    moved = [[r - 5.0 for r in RAGGED_BG[0]], *RAGGED_BG[1:]]
    before, after = (flat(estimators.load(name).advantages(r)) for r in (RAGGED_BG, moved))
    assert (after != pytest.approx(before, abs=1e-5)) == follows


def settings(*words: str) -> Settings:
    return load_settings(None, words, {})


def test_the_configuration_names_the_estimator() -> None:
    rlp = objectives.load("rlp")
    assert load_estimator(settings(), rlp) is estimators.load("leave_one_out")
    assert load_estimator(settings("objective.estimator=group_std"), rlp) is estimators.load(
        "group_std"
    )


def test_the_configured_estimator_decides_the_least_group() -> None:
    assert check_run(settings("sampling.group_size=1", "objective.estimator=none")).thinks
    with pytest.raises(InvalidInput, match=r"at least 2 for the group_std advantage"):
        check_run(settings("sampling.group_size=1", "objective.estimator=group_std"))


def test_an_estimator_that_is_none_of_these_is_refused_with_their_names() -> None:
    with pytest.raises(InvalidInput, match=r"no estimator 'mean'.*batch_std.*group_std.*none"):
        check_run(settings("objective.estimator=mean"))
