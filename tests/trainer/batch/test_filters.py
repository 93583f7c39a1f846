"""Filters of groups and thoughts by hand, separately and in a training batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from forethought import estimators, objectives
from forethought.config.sections import FilterSection, LearnerSection
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from trainer.batch import filters
from trainer.batch.builder import BatchBuilder, TrainingBatch
from trainer.batch.thought_tree import Branch

PROMPTING = Prompting(bridge_ids=(90,), close_ids=(91, 92))
BUDGET = 8


def thought(num_tokens: int, closed: bool = True) -> Thought:
    ids = (*range(num_tokens - 1), 91 if closed else 7)
    return Thought(ids, (-0.5,) * num_tokens, (VersionSpan(0, num_tokens),), closed)


def result(
    task_id: int,
    rewards_G: tuple[float, ...],
    thoughts_G: tuple[Thought, ...] | None = None,
    logprobs_G: tuple[float, ...] = (),
) -> ScoredRollout:
    thoughts_G = thoughts_G or (thought(2),) * len(rewards_G)
    task = Task(
        task_id, 1, 0, 0, "rlp", "{}", Document(f"d{task_id}", "s", (1, 2, 3, 4)),
        (Position(2, (3,)),), PROMPTING, Sampling(len(rewards_G), BUDGET, 0.7), seed=0,
    )  # fmt: skip
    return ScoredRollout(
        Rollout(task, (thoughts_G,)), (rewards_G,), (logprobs_G or rewards_G,), (0.0,)
    )


def build(results: list[ScoredRollout], aggregation: str = "", **section: Any) -> TrainingBatch:
    builder = BatchBuilder(
        objectives.load("rlp"),
        estimators.load("leave_one_out"),
        FilterSection(**section),
        LearnerSection(aggregation=aggregation),  # type: ignore[arg-type]
    )
    return builder.build(results)


def branches(given: TrainingBatch) -> list[Branch]:
    return [branch for tree in given.trees for branch in tree.branches]


def learned(given: TrainingBatch) -> list[tuple[float, float]]:
    """(weight, advantage) of the last token of every branch."""
    return [(branch.weights_T[-1], branch.advantages_T[-1]) for branch in branches(given)]


def test_spread_by_hand() -> None:
    assert filters.spread((1.0, 3.0)) == 1.0
    assert filters.spread((0.0, 0.0, 3.0, 3.0)) == 1.5
    assert filters.spread((0.0, 0.0, 6.0)) == pytest.approx(math.sqrt(8))
    assert filters.spread((5.0,)) == filters.spread(()) == 0.0


def test_group_filters_by_hand() -> None:
    rewards_BG = [(1.0, 1.0), (0.0, 1.0), (0.0, 0.2), (-3.0, -3.0)]
    logprobs_BG = [(-1.0, -3.0), (-1.0, -1.1), (-2.0, -4.0), (-0.5, -0.5)]
    both = FilterSection(zero_variance=True, min_reward_std=0.2, min_logprob_std=0.5)
    assert filters.kept_groups(both, rewards_BG, logprobs_BG) == (
        [False, False, False, False],
        {"dropped/zero_variance": 2, "dropped/min_reward_std": 3, "dropped/min_logprob_std": 2},
    )
    assert filters.kept_groups(FilterSection(zero_variance=True), rewards_BG, logprobs_BG) == (
        [False, True, True, False], {"dropped/zero_variance": 2},
    )  # fmt: skip
    assert filters.kept_groups(FilterSection(min_reward_std=0.1), rewards_BG, logprobs_BG)[0] == [
        False, True, True, False,
    ]  # fmt: skip
    assert filters.kept_groups(FilterSection(min_logprob_std=0.5), rewards_BG, logprobs_BG)[0] == [
        True, False, True, False,
    ]  # fmt: skip
    assert filters.kept_groups(FilterSection(), rewards_BG, logprobs_BG) == ([True] * 4, {})


def test_a_group_without_likelihoods_is_not_a_group_without_spread() -> None:
    """RPT requests no likelihoods, so there is no spread to filter by."""
    section = FilterSection(min_logprob_std=0.5)
    assert filters.kept_groups(section, [(0.0, 1.0)], [()])[0] == [True]


def test_a_group_of_one_has_no_spread_and_is_kept() -> None:
    """For estimators that compare nothing within a group: none and batch_zscore."""
    section = FilterSection(zero_variance=True, min_reward_std=1.0, min_logprob_std=1.0)
    assert filters.kept_groups(section, [(0.5,)], [(-1.0,)])[0] == [True]
    assert not filters.is_flat((0.5,))


def test_a_dropped_group_leaves_the_batch_smaller() -> None:
    """The rest is trained on as if it were the whole batch."""
    flat, other = result(0, (1.0, 1.0)), result(1, (2.0, 0.0))
    filtered = build([flat, other], zero_variance=True)
    assert filtered.metrics == {"dropped/zero_variance": 1}
    assert filtered.trees == build([other]).trees
    assert learned(filtered) == [(0.25, 2.0), (0.25, -2.0)]
    assert learned(build([flat, other]))[2:] == [(0.125, 2.0), (0.125, -2.0)]


def test_a_batch_of_dropped_groups_is_an_empty_training_batch() -> None:
    empty = build([result(0, (1.0, 1.0))], zero_variance=True)
    assert (empty.trees, empty.metrics) == ([], {"dropped/zero_variance": 1})
    assert build([]).trees == []


CUT = (thought(2), thought(8, closed=False), thought(4))


def test_a_truncated_thought_is_kept_by_default() -> None:
    weights = [w for w, _ in learned(build([result(0, (1.0, 4.0, 1.0), CUT)]))]
    assert weights == pytest.approx([1 / 6, 1 / 24, 1 / 12])


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [("", [1 / 4, 1 / 8]), ("token_mean", [1 / 6, 1 / 6]), ("constant", [1 / 16, 1 / 16])],
)
def test_a_masked_thought_leaves_the_denominators_and_counts_in_the_mean(
    aggregation: str, weights: list[float]
) -> None:
    masked = build([result(0, (1.0, 4.0, 1.0), CUT)], aggregation, truncated="mask")
    assert masked.metrics == {"masked_thoughts": 1}
    assert [len(branch.token_ids_T) for branch in branches(masked)] == [3, 5]  # bridge and thought
    got = learned(masked)
    assert [w for w, _ in got] == pytest.approx(weights)
    assert [a for _, a in got] == pytest.approx([-1.5, -1.5])  # 1 less the mean of 4 and 1


def test_a_group_of_only_truncated_thoughts_is_not_learned() -> None:
    gone = result(0, (1.0, 2.0), (thought(8, closed=False),) * 2)
    other = result(1, (2.0, 0.0))
    masked = build([gone, other], truncated="mask")
    assert masked.metrics == {"masked_thoughts": 2}
    assert learned(masked) == [(0.25, 2.0), (0.25, -2.0)]


@pytest.mark.parametrize(
    ("num_tokens", "closed", "margin", "expected"),
    [
        (8, False, 0, 2.0),  # ran out of its budget of 8
        (8, True, 0, 0.0),  # closed with the last token of it
        (4, True, 4, 0.0),
        (5, True, 4, 0.5),  # a quarter of the margin of 4
        (7, True, 4, 1.5),
        (8, True, 4, 2.0),
        (8, False, 4, 2.0),
    ],
)
def test_overlong_penalties_by_hand(
    num_tokens: int, closed: bool, margin: int, expected: float
) -> None:
    got = filters.overlong_penalties([[thought(num_tokens, closed)]], BUDGET, margin, penalty=2.0)
    assert got == [[expected]]


def test_a_penalty_is_subtracted_before_advantages_and_filters() -> None:
    """Rewards 1, 1, 1 would be a flat group; the truncated thought's is -1 after its penalty of 2."""
    given = [result(0, (1.0, 1.0, 1.0), CUT)]
    got = build(given, truncated="penalise", truncated_penalty=2.0, zero_variance=True)
    assert got.metrics == {"penalised_thoughts": 1, "dropped/zero_variance": 0}
    assert [a for _, a in learned(got)] == pytest.approx([1.0, -2.0, 1.0])


def test_a_prediction_does_not_count_towards_the_thoughts_length() -> None:
    """Six tokens of thought, two of prediction: inside the margin by a quarter, and no more."""
    long = replace(thought(8), num_prediction_tokens=3)
    assert filters.overlong_penalties([[long]], BUDGET, 4, penalty=2.0) == [[0.5]]
