"""The feed: tasks in id order, each a function of the seed, its id and its document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle

import pytest

from forethought import objectives
from forethought.compute.model import Markers
from forethought.config import load_settings
from forethought.errors import InvalidInput
from forethought.types import Document, Prompting, Sampling, Task
from trainer.admission.feed import TaskFeed

MARKERS = Markers(open_ids=(90,), close_ids=(91,))


class Endless:
    """Repeats the given documents; counts how many were drawn."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents: Iterator[Document] = cycle(documents)
        self.num_drawn = 0

    def take(self, num_documents: int) -> list[Document]:
        self.num_drawn += num_documents
        return [next(self._documents) for _ in range(num_documents)]


def document(name: str, num_tokens: int = 20, marks: tuple[int, ...] = ()) -> Document:
    return Document(name, "s", tuple(range(num_tokens)), marks=marks)


ABC = [document("a"), document("b", 12), document("c", 3)]


def make_feed(documents: Iterable[Document] = ABC, *words: str, first: int = 0) -> TaskFeed:
    settings = load_settings(None, ("learner.batch_tasks=3", "run.seed=5", *words), {})
    rlp = objectives.load("rlp", settings.objective.parameters)
    prompting = rlp.prompting(MARKERS.open_ids, MARKERS.close_ids)
    feed = TaskFeed(Endless(documents), rlp, MARKERS, prompting, settings, ("policy",))
    feed.next_task_id = first
    return feed


def untraced(tasks: Iterable[Task]) -> list[Task]:
    """Without trace ids, the only random part of a task."""
    return [replace(task, traceparent="") for task in tasks]


def test_ids_grow_by_one_and_batches_are_consecutive() -> None:
    feed = make_feed()
    tasks = feed.take(4, epoch=1, min_version=0) + feed.take(3, epoch=1, min_version=1)
    assert [task.task_id for task in tasks] == list(range(7))
    assert [task.batch for task in tasks] == [0, 0, 0, 1, 1, 1, 2]
    assert [task.min_version for task in tasks] == [0] * 4 + [1] * 3
    assert feed.next_task_id == 7


def test_a_task_says_what_the_settings_say() -> None:
    words = (
        "sampling.group_size=4", "sampling.max_thought_tokens=9", "sampling.temperature=0.7",
        "learner.max_staleness=2", "objective.parameters.target_tokens=2",
    )  # fmt: skip
    (task,) = make_feed(ABC, *words).take(1, epoch=6, min_version=3)
    assert task.sampling == Sampling(4, 9, 0.7, stop_ids=(91,))
    assert task.prompting == Prompting(bridge_ids=(90,), close_ids=(91,))
    assert (task.epoch, task.min_version, task.max_staleness, task.seed) == (6, 3, 2, 5)
    assert task.objective == "rlp"
    assert objectives.load("rlp").config.model_validate_json(task.objective_json).target_tokens == 2
    assert task.models == ("policy",)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", task.traceparent)


def test_a_task_of_markers_of_several_tokens_ends_at_their_sequence() -> None:
    """Positions at the marker's words stay: they are text. A target with a whole marker is none."""
    markers = Markers(open_ids=(4, 5), close_ids=(6, 7, 8))
    feed = make_feed([document("a", 12)], "objective.parameters.target_tokens=2")
    feed.markers = markers
    tasks = feed.take(200, epoch=1, min_version=0)
    assert {task.sampling.stop_sequences for task in tasks} == {((6, 7, 8),)}
    assert {task.sampling.stop_ids for task in tasks} == {()}
    assert {p.index for task in tasks for p in task.positions_K} == set(range(1, 11)) - {4}


@pytest.mark.parametrize("target_tokens", [1, 2])
def test_positions_lie_inside_the_document(target_tokens: int) -> None:
    words = (
        f"objective.parameters.target_tokens={target_tokens}",
        "objective.parameters.num_positions=4",
    )
    for task in make_feed(ABC, *words).take(60, epoch=1, min_version=0):
        ids = task.document.token_ids_N
        assert 1 <= len(task.positions_K) <= 4
        for position in task.positions_K:
            assert 1 <= position.index <= len(ids) - target_tokens
            end = position.index + target_tokens
            assert position.target_ids_H == ids[position.index : end]


def test_the_same_seed_makes_the_same_tasks() -> None:
    first = make_feed().take(20, epoch=1, min_version=0)
    again = make_feed()
    singly = [task for _ in range(20) for task in again.take(1, epoch=1, min_version=0)]
    assert untraced(first) == untraced(singly)
    assert len({task.traceparent for task in first}) == 20


def test_another_seed_thinks_elsewhere() -> None:
    one, other = make_feed(), make_feed(ABC, "run.seed=6")
    indices = [
        [task.positions_K[0].index for task in feed.take(20, epoch=1, min_version=0)]
        for feed in (one, other)
    ]
    assert indices[0] != indices[1]


def test_a_resumed_feed_makes_the_tasks_that_would_have_come() -> None:
    """Counter and cursor are the whole state."""
    whole = make_feed().take(9, epoch=1, min_version=0)
    resumed = make_feed(ABC[1:] + ABC[:1], first=4)
    assert untraced(resumed.take(5, epoch=1, min_version=0)) == untraced(whole[4:])


def test_documents_without_a_position_are_skipped() -> None:
    documents = [document("long"), document("empty", 0), document("one", 1)]
    feed = make_feed(documents)
    tasks = feed.take(3, epoch=1, min_version=0)
    assert [task.document.document_id for task in tasks] == ["long"] * 3
    assert [task.task_id for task in tasks] == [0, 1, 2]
    assert feed.documents.num_drawn == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([document("one", 1)], ()),
        ([document("two", 2)], ("objective.parameters.target_tokens=2",)),
        ([document("unmarked")], ("objective.parameters.positions=marked",)),
        ([document("at-0", marks=(0, 20))], ("objective.parameters.positions=marked",)),
    ],
)
def test_a_corpus_without_any_position_is_refused(
    documents: list[Document], words: tuple[str, ...]
) -> None:
    feed = make_feed(documents, *words)
    with pytest.raises(
        InvalidInput, match="documents in a row have no position for objective 'rlp'"
    ):
        feed.take(1, epoch=1, min_version=0)
    assert feed.next_task_id == 0


def test_marked_positions_are_those_of_the_corpus() -> None:
    feed = make_feed([document("m", marks=(3, 8))], "objective.parameters.positions=marked")
    tasks = feed.take(30, epoch=1, min_version=0)
    assert {task.positions_K[0].index for task in tasks} == {3, 8}


def test_markers_are_never_a_target() -> None:
    """The no-think scorer gives the open token no probability at all."""
    thinking = Document("t", "s", (1, 90, 2, 91, 3), marks=(1, 2, 3, 4))
    words = ("objective.parameters.positions=marked", "objective.parameters.num_positions=4")
    (task,) = make_feed([thinking], *words).take(1, epoch=1, min_version=0)
    assert [position.index for position in task.positions_K] == [2, 4]
    wide = (*words, "objective.parameters.target_tokens=2")
    with pytest.raises(InvalidInput, match="no position"):  # each pair holds a marker
        make_feed([thinking], *wide).take(1, epoch=1, min_version=0)


def test_adopted_tasks_change_only_epoch_and_version() -> None:
    feed = make_feed()
    tasks = feed.take(5, epoch=1, min_version=0)
    adopted = feed.adopt(tasks, epoch=2, min_version=7)
    assert adopted == [replace(task, epoch=2, min_version=7) for task in tasks]
    assert feed.next_task_id == 5
    assert [task.epoch for task in tasks] == [1] * 5


def rpt_feed(*words: str) -> TaskFeed:
    settings = load_settings(None, ("learner.batch_tasks=2", "objective.name=rpt", *words), {})
    rpt = objectives.load("rpt", settings.objective.parameters)
    entropies = tuple(float(index) for index in range(12))
    documents = Endless([Document("e", "s", tuple(range(12)), entropies_N=entropies)])
    prompting = Prompting((7, 8), (9, 90), (91,))
    return TaskFeed(documents, rpt, MARKERS, prompting, settings, (), end_ids=(3, 4))


def test_a_prediction_is_requested_after_the_close() -> None:
    (boxed,) = rpt_feed().take(1, epoch=1, min_version=0)
    assert boxed.sampling.stop_ids == (91,)
    assert (boxed.sampling.prediction_tokens, boxed.sampling.prediction_stop_ids) == (256, (3, 4))
    assert boxed.prompting == Prompting((7, 8), (9, 90), (91,))
    assert boxed.models == ()
    plain = rpt_feed("objective.parameters={prompt = 'plain', prediction_tokens = 2}")
    (task,) = plain.take(1, epoch=1, min_version=0)
    assert (task.sampling.prediction_tokens, task.sampling.prediction_stop_ids) == (2, ())


def test_a_curriculum_follows_the_batch_and_not_the_task() -> None:
    """The threshold goes from 1 to 9 nats over two batches of two tasks; token i has i nats."""
    parameters = (
        "{positions = 'entropy', min_entropy = 1.0, final_min_entropy = 9.0, "
        "curriculum_batches = 2, num_positions = 99}"
    )
    tasks = rpt_feed(f"objective.parameters={parameters}").take(6, epoch=1, min_version=0)
    first = [task.positions_K[0].index for task in tasks]
    assert first == [1, 1, 5, 5, 9, 9]
    carried = [objectives.load("rpt").config.model_validate_json(t.objective_json) for t in tasks]
    assert [config.min_entropy for config in carried] == [1.0, 1.0, 5.0, 5.0, 9.0, 9.0]


def test_a_mixture_is_of_whole_tasks_and_every_task_says_its_kind() -> None:
    """Half of the documents have no marks: they are skipped and do not change the share."""
    documents = [document("bare"), document("m", marks=(3, 8))]
    words = ("objective.parameters={positions = 'marked', uniform_share = 0.5}",)
    tasks = make_feed(documents, *words).take(200, epoch=1, min_version=0)
    kinds = [json.loads(task.objective_json)["positions"] for task in tasks]
    assert kinds.count("uniform") == pytest.approx(100, abs=30)
    for task, kind in zip(tasks, kinds, strict=True):
        assert kind == "uniform" or task.positions_K[0].index in (3, 8)
    drawn = {
        t.positions_K[0].index for t, kind in zip(tasks, kinds, strict=True) if kind != "marked"
    }
    assert len(drawn) > 10
    again = make_feed(documents, *words).take(200, epoch=1, min_version=0)
    assert untraced(again) == untraced(tasks)


def test_a_position_whose_next_token_cannot_be_predicted_is_left_out_and_counted() -> None:
    """Only the first target token counts, and the others are drawn as before."""
    words = ("objective.parameters.target_tokens=2", "objective.parameters.num_positions=4")
    plain = make_feed(ABC, *words).take(40, epoch=1, min_version=0)
    feed = make_feed(ABC, *words)
    feed.unpredictable_ids = frozenset({4, 7})
    tasks = feed.take(40, epoch=1, min_version=0)
    drawn = [(t.task_id, p) for t in tasks for p in t.positions_K]
    assert not {p.target_ids_H[0] for _, p in drawn} & feed.unpredictable_ids
    assert {p.target_ids_H[1] for _, p in drawn} >= feed.unpredictable_ids
    before = [(t.task_id, p) for t in plain for p in t.positions_K]
    assert drawn == [place for place in before if place[1].index not in feed.unpredictable_ids]
    assert feed.num_unpredictable == len(before) - len(drawn) > 0
