"""Where a comparison measures: marked positions, some of them, and elsewhere."""

from __future__ import annotations

from typing import Any

from forethought.lab.compare.measurement import _queries
from forethought.lab.compare.plan import EvaluationEntry
from forethought.types import Document

MARKS = (0, 3, 5, 6, 9)
DOCUMENTS = [Document(f"d{i}", "s", tuple(range(10)), marks=MARKS) for i in range(40)]


def indices(**fields: Any) -> dict[str, list[list[int]]]:
    entry = EvaluationEntry(corpus="heldout.jsonl", **fields)
    found = {}
    for kind, queries in _queries(DOCUMENTS, entry).items():
        of_document = {d.document_id: [] for d in DOCUMENTS}
        for query in queries:
            of_document[query.document.document_id].append(query.position.index)
        found[kind] = list(of_document.values())
    return found


def test_every_mark_with_a_context_or_as_many_as_wanted() -> None:
    assert indices()["answers"] == [[3, 5, 6, 9]] * 40
    some = indices(num_positions=2)
    assert all(len(of_document) == 2 for of_document in some["answers"])
    assert {i for of_document in some["answers"] for i in of_document} == {3, 5, 6, 9}
    assert some["answers"] == indices(num_positions=2)["answers"]
    assert some["answers"] != indices(num_positions=2, seed=2)["answers"]


def test_elsewhere_is_never_at_a_mark() -> None:
    for fields in ({}, {"num_positions": 2}):
        elsewhere = [i for (i,) in indices(**fields)["elsewhere"]]
        assert set(elsewhere) <= {1, 2, 4, 7, 8}
    assert {i for (i,) in indices(positions="uniform")["answers"]} > {3, 5}
