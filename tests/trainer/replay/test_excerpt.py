"""Which sampled tokens are replayed: the last of a thought, of one version, after exactly their prefix."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    Task,
    Thought,
    VersionSpan,
)
from trainer.replay.excerpt import (
    MAX_TOKENS,
    MAX_TOKENS_PER_THOUGHT,
    Excerpt,
    excerpts_of,
)

TRUNK, PROMPTING = (1, 2, 3, 4, 5), Prompting(head_ids=(90,), bridge_ids=(91, 92), bos_ids=(99,))


def thought_of(*spans: tuple[int, int], first_id: int = 10, num_predicted: int = 0) -> Thought:
    """Token i of the thought has id ``first_id`` + i and log-prob -i; spans are (version, tokens)."""
    num_tokens = sum(num for _, num in spans)
    return Thought(
        tuple(range(first_id, first_id + num_tokens)),
        tuple(-float(i) for i in range(num_tokens)),
        tuple(VersionSpan(*span) for span in spans),
        closed=True,
        num_prediction_tokens=num_predicted,
    )


def rollout_of(*groups: tuple[Thought, ...], indices: tuple[int, ...] = (3,)) -> Rollout:
    task = Task(
        7, 1, 0, 0, "rlp", "{}", Document("d", "s", TRUNK),
        tuple(Position(index, (9,)) for index in indices), PROMPTING,
        Sampling(len(groups[0]), 40, 0.7), seed=0,
    )  # fmt: skip
    return Rollout(task, groups, "rollout-a")


def test_the_last_tokens_with_everything_before_them() -> None:
    """Close token and prediction are among them."""
    (excerpt,) = excerpts_of([rollout_of((thought_of((4, 20), num_predicted=3),))], 4)
    assert MAX_TOKENS_PER_THOUGHT == 8
    assert excerpt == Excerpt(
        prefix_ids=(99, 90, 1, 2, 3, 91, 92, *range(10, 22)),
        token_ids_L=tuple(range(22, 30)),
        behaviour_logprobs_L=tuple(-float(i) for i in range(12, 20)),
        temperature=0.7,
    )


def test_a_target_that_the_sampler_scored_is_replayed_after_its_thought() -> None:
    """Without the prediction, and at temperature 1."""
    thought = replace(thought_of((4, 6), num_predicted=2), target_logprobs_H=(-0.5,))
    sampled, target = excerpts_of([rollout_of((thought,))], 4)
    assert sampled.token_ids_L == tuple(range(10, 16))
    assert target == Excerpt((99, 90, 1, 2, 3, 91, 92, *range(10, 14)), (9,), (-0.5,), 1.0)


def test_of_a_thought_of_several_versions_only_the_tokens_of_the_wanted_one() -> None:
    rollout = rollout_of((thought_of((3, 5), (4, 2), (6, 3)),))
    of_version = {version: excerpts_of([rollout], version) for version in (3, 4, 5, 6)}
    assert [e.token_ids_L for e in of_version[3]] == [(10, 11, 12, 13, 14)]
    assert [e.token_ids_L for e in of_version[4]] == [(15, 16)]
    assert of_version[4][0].prefix_ids[-5:] == (10, 11, 12, 13, 14)
    assert of_version[4][0].behaviour_logprobs_L == (-5.0, -6.0)
    assert of_version[5] == []
    assert [e.token_ids_L for e in of_version[6]] == [(17, 18, 19)]


def test_thoughts_of_one_version_come_first_or_alone() -> None:
    mixed, whole = thought_of((3, 5), (4, 5)), thought_of((4, 5), first_id=50)
    rollout = rollout_of((mixed, whole))
    assert [e.token_ids_L[0] for e in excerpts_of([rollout], 4)] == [50, 15]
    assert [e.token_ids_L[0] for e in excerpts_of([rollout], 4, whole_only=True)] == [50]


def test_a_few_tokens_of_many_groups() -> None:
    """One thought of each group before the second of any, until there are enough."""
    groups = [
        (thought_of((4, 9), first_id=100 * k), thought_of((4, 9), first_id=100 * k + 50))
        for k in range(3)
    ]
    found = excerpts_of([rollout_of(*groups, indices=(0, 2, 5))], 4)
    assert [e.token_ids_L[0] // 50 for e in found] == [0, 2, 4, 1]
    assert [len(e.prefix_ids) for e in found] == [5, 7, 10, 5]
    assert [*accumulate(len(e.token_ids_L) for e in found)] == [8, 16, 24, MAX_TOKENS]
