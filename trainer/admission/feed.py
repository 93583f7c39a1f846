"""The feed: corpus windows in, tasks (or documents for plain next-token learning) out.

Design: a task is a pure function of the run's seed, its id and the document drawn for it (its trace id
aside), so the feed's whole state is a counter and the corpus cursor. Documents in which the objective
finds no position are passed over; if nothing but such documents comes, the run stops and says so
rather than spin.
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

_MAX_PASSED_OVER = 1000


class Documents(Protocol):
    """An endless supply of documents."""

    def take(self, num_documents: int) -> list[Document]:
        """The next ``num_documents``."""
        ...


@dataclass(slots=True)
class TaskFeed:
    """Makes tasks in id order. ``next_task_id`` and the documents' cursor are its whole state.

    ``end_ids`` are the model's end-of-text tokens, for predictions that may end early.

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

    def take(self, num_tasks: int, *, epoch: int, min_version: int) -> list[Task]:
        """The next tasks; ``min_version`` is the newest policy version at their admission.

        Raises:
            InvalidInput: the corpus has no position that the objective can use.
        """
        return [self._next(epoch, min_version) for _ in range(num_tasks)]

    def replace(self, tasks: Sequence[Task], *, epoch: int, min_version: int) -> list[Task]:
        """Other tasks in the place of these, of their batches: the next documents, no new ids in order.

        Raises:
            InvalidInput: the corpus has no position that the objective can use.
        """
        return [self._task(next_attempt(t.task_id), t.batch, epoch, min_version) for t in tasks]

    def adopt(self, tasks: Sequence[Task], *, epoch: int, min_version: int) -> list[Task]:
        """The outstanding tasks of a checkpoint, admitted anew under a new epoch."""
        return [replace(task, epoch=epoch, min_version=min_version) for task in tasks]

    def _next(self, epoch: int, min_version: int) -> Task:
        task_id = self.next_task_id
        batch = task_id // self.settings.learner.batch_tasks
        task = self._task(task_id, batch, epoch, min_version)
        self.next_task_id += 1
        return task

    def _task(self, task_id: int, batch: int, epoch: int, min_version: int) -> Task:
        settings, objective = self.settings, self.objective.of_batch(batch)
        document, positions_K = self._document_with_positions(task_id, objective)
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
        )

    def _sampling(self) -> Sampling:
        section, objective = self.settings.sampling, self.objective
        return Sampling(
            group_size=section.group_size,
            max_thought_tokens=section.max_thought_tokens,
            temperature=section.temperature,
            stop_ids=(self.markers.close_id,),
            prediction_tokens=objective.prediction_tokens,
            prediction_stop_ids=self.end_ids if objective.prediction_ends else (),
        )

    def _document_with_positions(
        self, task_id: int, objective: Objective
    ) -> tuple[Document, tuple[Position, ...]]:
        rng = Random(derive_seed(self.settings.run.seed, task_id))
        for _ in range(_MAX_PASSED_OVER):
            (document,) = self.documents.take(1)
            chosen = objective.positions(document, rng)
            if positions_K := tuple(p for p in chosen if self._can_be_predicted(p)):
                return document, positions_K
        raise InvalidInput(
            f"{_MAX_PASSED_OVER} documents in a row have no position for objective "
            f"{self.settings.objective.name!r} with {objective.config!r}; expected documents "
            "longer than the target (uniform), with marks (marked), of enough entropy (entropy), or with "
            "a question before their text (rlvr: the source's prompt_field)"
        )

    def _can_be_predicted(self, position: Position) -> bool:
        """Not a think marker: the no-think scorer gives the open token no probability at all."""
        return not {self.markers.open_id, self.markers.close_id} & set(position.target_ids_H)
