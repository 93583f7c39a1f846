"""Position selection as parameters shared by objectives.

Design: positions are selected in the feed from the document alone: uniformly, by the corpus's marks, or by
its annotated entropies. At which positions thinking *helps* is only known after scoring, and is left to
the filters (``filter.min_logprob_std``). A curriculum moves a threshold with the batch number, and a
mixture draws each task's kind of position, so that a task remains a function of seed, id and document, and
includes the threshold and the kind it was made with. The price: a mixture is of whole tasks, not of the
positions within one.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from forethought.objectives.parts import positions
from forethought.objectives.parts.base import Objective
from forethought.types import Document, Position

Nats = Annotated[float, Field(ge=0)]
Part = Annotated[float, Field(gt=0, le=1)]


class Selection(BaseModel):
    """Which positions of a document to select, and how many target tokens.

    ``entropy`` selects positions of at least ``min_entropy`` nats, ``top_entropy`` the ``top_share`` of a
    document's positions with the highest entropy. Over the first ``curriculum_batches`` both thresholds
    move linearly to their ``final_`` values. Of all tasks, ``uniform_share`` have uniform positions instead
    of the chosen ones, because thinking at one kind alone teaches that kind everywhere.

    Example:
        ``Selection(positions="entropy", min_entropy=0.5, final_min_entropy=1.5, curriculum_batches=500)``
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    positions: Literal["uniform", "all", "marked", "entropy", "top_entropy"] = "uniform"
    uniform_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    num_positions: Annotated[int, Field(ge=1)] = 1
    target_tokens: Annotated[int, Field(ge=1)] = 1
    min_entropy: Nats = 0.5
    top_share: Part = 0.2
    curriculum_batches: Annotated[int, Field(ge=0)] = 0
    final_min_entropy: Nats = 0.5
    final_top_share: Part = 0.2

    def of_batch(self, batch: int) -> Self:
        """The parameters in effect at a batch (from 0), with the curriculum resolved."""
        if not self.curriculum_batches:
            return self
        progress = min(1.0, batch / self.curriculum_batches)
        return self.model_copy(
            update={
                "min_entropy": _between(self.min_entropy, self.final_min_entropy, progress),
                "top_share": _between(self.top_share, self.final_top_share, progress),
                "curriculum_batches": 0,
            }
        )

    def of_task(self, rng: Random) -> Self:
        """The parameters of one task, with the mixture resolved by the task's own random generator."""
        if not self.uniform_share:
            return self
        kind = "uniform" if rng.random() < self.uniform_share else self.positions
        return self.model_copy(update={"positions": kind, "uniform_share": 0.0})

    def select(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """Positions of a document, of one kind.

        Raises:
            InvalidInput: entropies are required and the document has none.
        """
        if self.uniform_share:
            return self.of_task(rng).select(document, rng)
        size = (self.num_positions, self.target_tokens)
        match self.positions:
            case "uniform":
                return positions.uniform(document, *size, rng)
            case "all":
                return positions.every(document, self.target_tokens)
            case "marked":
                return positions.marked(document, *size, rng)
            case "entropy":
                return positions.uncertain(document, *size, self.min_entropy, rng)
            case "top_entropy":
                return positions.most_uncertain(document, *size, self.top_share, rng)

    def max_positions(self, window_tokens: int) -> int:
        """The maximum number of positions that :meth:`select` returns for a window of that many tokens."""
        return window_tokens if self.positions == "all" else self.num_positions


class SelectingObjective(Objective):
    """An objective whose configuration is a :class:`Selection` of positions."""

    def of_batch(self, batch: int) -> Self:
        """This objective with the curriculum resolved at a batch."""
        config: Selection = self.config
        return self._with(config.of_batch(batch))

    def of_task(self, rng: Random) -> Self:
        """This objective with the mixture of positions resolved for a task."""
        config: Selection = self.config
        return self._with(config.of_task(rng))

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """Positions according to the selection's parameters."""
        selection: Selection = self.config
        return selection.select(document, rng)

    def max_positions(self, window_tokens: int) -> int:
        """See :meth:`Selection.max_positions`."""
        selection: Selection = self.config
        return selection.max_positions(window_tokens)

    def _with(self, selection: Selection) -> Self:
        return self if selection is self.config else type(self)(selection)


def _between(first: float, final: float, progress: float) -> float:
    return first + progress * (final - first)
