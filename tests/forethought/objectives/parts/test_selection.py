"""Where objectives think: by entropy, by share, along a curriculum."""

from __future__ import annotations

from random import Random

import pytest
from pydantic import ValidationError

from forethought import objectives
from forethought.errors import InvalidInput
from forethought.objectives.parts.selection import Selection
from forethought.types import Document

ENTROPIES = (0.0, 0.5, 2.0, 1.0, 2.0, 0.25, 1.5)
DOCUMENT = Document("d", "s", tuple(range(7)), entropies_N=ENTROPIES, marks=(6, 3))


def indices(document: Document = DOCUMENT, **parameters: object) -> list[int]:
    selection = Selection.model_validate({"num_positions": 99, **parameters})
    return [position.index for position in selection.select(document, Random(0))]


@pytest.mark.parametrize(
    ("least", "found"),
    [(0.0, [1, 2, 3, 4, 5, 6]), (0.5, [1, 2, 3, 4, 6]), (1.0, [2, 3, 4, 6]), (2.5, [])],
)
def test_a_threshold_of_entropy(least: float, found: list[int]) -> None:
    assert indices(positions="entropy", min_entropy=least) == found


@pytest.mark.parametrize(
    ("share", "found"),
    [(0.1, [2]), (1 / 6, [2]), (0.2, [2, 4]), (0.5, [2, 4, 6]), (1.0, [1, 2, 3, 4, 5, 6])],
)
def test_the_top_share_of_a_document(share: float, found: list[int]) -> None:
    """Of 6 positions, rounded up; of the two with 2.0 nats the first comes first."""
    assert indices(positions="top_entropy", top_share=share) == found


def test_every_position_has_a_context_and_a_whole_target() -> None:
    assert indices(positions="all", num_positions=1) == [1, 2, 3, 4, 5, 6]
    assert indices(positions="all", target_tokens=3) == [1, 2, 3, 4]
    assert indices(positions="entropy", min_entropy=1.0, target_tokens=3) == [2, 3, 4]
    assert indices(positions="marked", target_tokens=2) == [3]


def test_no_more_than_asked_for_and_all_of_them_in_turn() -> None:
    selection = Selection(positions="entropy", min_entropy=1.0, num_positions=2)
    drawn = [tuple(p.index for p in selection.select(DOCUMENT, Random(seed))) for seed in range(60)]
    assert {len(chosen) for chosen in drawn} == {2}
    assert {index for chosen in drawn for index in chosen} == {2, 3, 4, 6}


@pytest.mark.parametrize("positions", ["entropy", "top_entropy"])
def test_a_corpus_without_entropies_is_told_how_to_get_them(positions: str) -> None:
    with pytest.raises(InvalidInput, match=r"0 entropies for 7 tokens.*forethought curate"):
        indices(Document("d", "s", tuple(range(7))), positions=positions)


def test_a_curriculum_moves_in_a_straight_line_and_then_stays() -> None:
    selection = Selection(
        min_entropy=0.5, final_min_entropy=1.5, top_share=1.0, final_top_share=0.2,
        curriculum_batches=4,
    )  # fmt: skip
    placed = [selection.of_batch(batch) for batch in (0, 1, 2, 4, 400)]
    assert [p.min_entropy for p in placed] == pytest.approx([0.5, 0.75, 1.0, 1.5, 1.5])
    assert [p.top_share for p in placed] == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])
    assert all(p.of_batch(7) is p for p in placed)


@pytest.mark.parametrize("name", ["rlp", "rpt"])
def test_both_papers_objectives_select_alike(name: str) -> None:
    given = {"positions": "entropy", "min_entropy": 0.0, "final_min_entropy": 2.0}
    objective = objectives.load(name, {**given, "curriculum_batches": 2, "num_positions": 9})
    found = [
        [p.index for p in objective.of_batch(batch).positions(DOCUMENT, Random(1))]
        for batch in (0, 1, 2)
    ]
    assert found == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 6], [2, 4]]


def test_a_mixture_has_its_share_of_uniform_positions_whatever_the_kind() -> None:
    for kind, among in (("marked", {3, 6}), ("entropy", {2, 4}), ("all", {1, 2, 3, 4, 5, 6})):
        selection = Selection.model_validate(
            {"positions": kind, "uniform_share": 0.25, "num_positions": 2, "min_entropy": 2.0}
        )
        drawn = [selection.of_task(Random(seed)) for seed in range(400)]
        assert {task.uniform_share for task in drawn} == {0.0}
        num_uniform = sum(task.positions == "uniform" for task in drawn)
        assert num_uniform == pytest.approx(100, abs=30)
        found = [{p.index for p in task.select(DOCUMENT, Random(0))} for task in drawn]
        others = {i for task, of in zip(drawn, found, strict=True) for i in of
                  if task.positions == kind}  # fmt: skip
        assert others == among


def test_selecting_resolves_the_mixture_and_without_one_nothing_is_drawn() -> None:
    """So that adding the parameter changed no run that does not set it."""
    mixed = Selection(positions="marked", uniform_share=0.5, num_positions=1)
    found = {mixed.select(DOCUMENT, Random(seed))[0].index for seed in range(200)}
    assert found == {1, 2, 3, 4, 5, 6}
    rng, plain = Random(7), Selection(positions="marked")
    assert plain.of_task(rng) is plain
    assert rng.random() == Random(7).random()
    assert Selection(positions="marked", uniform_share=1.0).of_task(rng).positions == "uniform"


@pytest.mark.parametrize(
    "wrong",
    [{"top_share": 0.0}, {"top_share": 1.1}, {"min_entropy": -1.0}, {"uniform_share": 1.1}],
)
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Selection.model_validate(wrong)
