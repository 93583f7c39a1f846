"""The task feed: corpus windows in, tasks out.

Design: a task is a pure function of the run's seed, its id and the document drawn for it (except for its
trace id), so the feed's whole state is a counter and the corpus cursor. Documents in which the objective
finds no position are skipped; after too many of them in a row the run stops with an error instead of
spinning.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from forethought.compute.model import Markers
from forethought.compute.sampling import derive_seed
from forethought.config import Settings
from forethought.errors import InvalidInput
from forethought.objectives import Objective
from forethought.types import Document, Position, Prompting, Sampling, Task, next_attempt

_MAX_SKIPPED = 1000


class Documents(Protocol):
    """An endless supply of documents."""

    def take(self, num_documents: int) -> list[Document]:
        """The next ``num_documents``."""
        ...


@dataclass(slots=True)
class TaskFeed:
    """Makes tasks in id order. ``next_task_id`` and the documents' cursor are its whole state.

    ``end_ids`` are the model's end-of-text tokens, for predictions that may stop early; ``run_id`` is set
    before the first task.

    Example:
        ``TaskFeed(corpus, rlp, markers, prompting, settings, ("policy",)).take(8, epoch=1, min_version=0)``
    """

    documents: Documents
    objective: Objective
    markers: Markers
    prompting: Prompting
    settings: Settings
    models: tuple[str, ...]
    end_ids: tuple[int, ...] = ()
    next_task_id: int = 0
    unpredictable_ids: frozenset[int] = frozenset()
    num_unpredictable: int = 0
    run_id: str = ""

    def take(self, num_tasks: int, *, epoch: int, min_version: int) -> list[Task]:
        """The next tasks; ``min_version`` is the newest policy version at their admission.

        Raises:
            InvalidInput: the corpus has no position usable by the objective.
        """
        return [self._next(epoch, min_version) for _ in range(num_tasks)]

    def replace(self, tasks: Sequence[Task], *, epoch: int, min_version: int) -> list[Task]:
        """Replacements for ``tasks`` within their batches, from the next documents.

        Their ids are further attempts of the same tasks; the id counter does not advance.

        Raises:
            InvalidInput: the corpus has no position usable by the objective.
        """
        return [self._task(next_attempt(t.task_id), t.batch, epoch, min_version) for t in tasks]

    def adopt(self, tasks: Sequence[Task], *, epoch: int, min_version: int) -> list[Task]:
        """The outstanding tasks of a checkpoint, to be re-admitted under a new epoch."""
        return [
            replace(task, epoch=epoch, min_version=min_version, run_id=self.run_id)
            for task in tasks
        ]

    def _next(self, epoch: int, min_version: int) -> Task:
        task_id = self.next_task_id
        batch = task_id // self.settings.learner.batch_tasks
        task = self._task(task_id, batch, epoch, min_version)
        self.next_task_id += 1
        return task

    def _task(self, task_id: int, batch: int, epoch: int, min_version: int) -> Task:
        settings = self.settings
        rng = Random(derive_seed(settings.run.seed, task_id))
        objective = self.objective.of_batch(batch).of_task(rng)
        document, positions_K = self._document_with_positions(objective, rng)
        return Task(
            task_id=task_id,
            epoch=epoch,
            batch=batch,
            min_version=min_version,
            objective=settings.objective.name,
            objective_json=objective.config.model_dump_json(),
            document=document,
            positions_K=positions_K,
            prompting=self.prompting,
            sampling=self._sampling(),
            seed=settings.run.seed,
            max_staleness=settings.learner.max_staleness,
            models=self.models,
            traceparent=f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
            run_id=self.run_id,
        )

    def _sampling(self) -> Sampling:
        section, objective = self.settings.sampling, self.objective
        return Sampling(
            group_size=section.group_size,
            max_thought_tokens=section.max_thought_tokens,
            temperature=section.temperature,
            stop_ids=self.markers.stop_ids,
            stop_sequences=self.markers.stop_sequences,
            prediction_tokens=objective.prediction_tokens,
            prediction_stop_ids=self.end_ids if objective.prediction_ends else (),
        )

    def _document_with_positions(
        self, objective: Objective, rng: Random
    ) -> tuple[Document, tuple[Position, ...]]:
        for _ in range(_MAX_SKIPPED):
            (document,) = self.documents.take(1)
            chosen = objective.positions(document, rng)
            positions_K = tuple(p for p in chosen if self._can_be_predicted(p))
            self.num_unpredictable += len(chosen) - len(positions_K)
            if positions_K:
                return document, positions_K
        raise InvalidInput(
            f"{_MAX_SKIPPED} documents in a row have no position for objective "
            f"{self.settings.objective.name!r} with {objective.config!r}; expected documents "
            "longer than the target (uniform), with marks (marked: the source's marks_field or "
            "marks_pattern), of enough entropy (entropy), or with a question before their text (rlvr: the "
            "source's prompt_field)"
        )

    def _can_be_predicted(self, position: Position) -> bool:
        """Whether the target contains no think marker, which the no-think scorer may give no mass, and
        begins with a token that a prediction can be."""
        ids = position.target_ids_H
        is_marked = self.markers.occur_in(ids)
        return not is_marked and self.unpredictable_ids.isdisjoint(ids[:1])
