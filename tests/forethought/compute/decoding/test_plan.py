"""Which groups share a trunk, and the tokens that a batch keeps."""

from __future__ import annotations

from random import Random

import pytest

from forethought.compute.decoding.decoder import Group
from forethought.compute.decoding.plan import DecodePlan, num_keys, plan_of

DOCUMENT = tuple(Random(0).choices(range(1000), k=512))
BRIDGE = (2000, 2001)


def prefixes_of(plan: DecodePlan) -> dict[int, tuple[int, ...]]:
    return {
        branch.row: tree.trunk_ids[: branch.index] + branch.token_ids
        for batch in plan.batches
        for tree in batch
        for branch in tree.branches
    }


def test_all_positions_of_a_document_have_one_trunk_to_the_end_of_the_longest() -> None:
    groups = [Group(DOCUMENT[:n] + BRIDGE, 4, 32) for n in range(64, 513, 64)]
    plan = plan_of(groups)
    ((tree,),) = plan.batches
    assert tree.trunk_ids == DOCUMENT + BRIDGE
    assert [branch.token_ids for branch in tree.branches] == [BRIDGE] * 7 + [()]
    assert plan.num_tokens == 514 + 8 * 4 * (2 + 32)
    assert plan.owners_R == [i for i in range(8) for _ in range(4)]


def test_a_tail_that_its_rows_would_repeat_too_often_has_a_trunk_of_its_own() -> None:
    """24 tokens for each of 4 rows are fewer than the 100 shared; for each of 5 they are more."""
    tail = tuple(range(3000, 3024))
    for num_rows, num_trunks in ((4, 1), (5, 2)):
        plan = plan_of([Group(DOCUMENT, 4, 8), Group(DOCUMENT[:100] + tail, num_rows, 8)])
        assert len(plan.batches) == num_trunks
        assert plan.longest_tail == (24 if num_trunks == 1 else 0)


def test_short_trunks_of_many_documents_are_one_batch_and_a_long_one_is_not() -> None:
    rng = Random(1)
    short = [Group(tuple(rng.choices(range(1000), k=30 + i % 8)), 8, 8) for i in range(40)]
    plan = plan_of([Group(DOCUMENT, 8, 8), *short])
    assert [len(batch) for batch in plan.batches] == [1, 40]
    assert [num_keys(batch) for batch in plan.batches] == [512, 37]
    assert plan.num_tokens == 512 + 40 * 37 + 41 * 8 * 8


@pytest.mark.parametrize("seed", range(20))
def test_every_group_finds_its_prefix(seed: int) -> None:
    rng = Random(seed)
    groups = []
    for _ in range(30):
        start, num = rng.choice([0, 0, 7, 200]), rng.randint(0, 60)
        tail = tuple(rng.choices(range(2000, 2004), k=rng.randint(1, 5)))
        groups.append(Group(DOCUMENT[start : start + num] + tail, rng.randint(1, 9), 5))
    plan = plan_of(groups)
    assert prefixes_of(plan) == {i: group.prefix_ids for i, group in enumerate(groups)}
    assert sorted(plan.owners_R) == [i for i, g in enumerate(groups) for _ in range(g.num_rows)]
    for batch in plan.batches:
        assert all(3 * num_keys(batch) <= 4 * len(tree.trunk_ids) for tree in batch)
