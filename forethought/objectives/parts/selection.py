"""Where objectives think, as parameters that all of them share.

Design: what a position is worth is asked in the feed, from the document alone: uniformly, by the corpus's
marks, or by the entropies it carries. Which positions thinking *helps* is only known after scoring, and is
the business of the filters (``filter.min_logprob_std``). A curriculum moves a threshold with the batch's
number, so that a task stays a function of seed, id and document, and carries where it stood.
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
    """Which positions of a document, and how many target tokens.

    ``entropy`` takes positions of at least ``min_entropy`` nats, ``top_entropy`` the ``top_share`` of a
    document with most. Over the first ``curriculum_batches`` both move linearly to their ``final_`` values.

    Example:
        ``Selection(positions="entropy", min_entropy=0.5, final_min_entropy=1.5, curriculum_batches=500)``
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    positions: Literal["uniform", "all", "marked", "entropy", "top_entropy"] = "uniform"
    num_positions: Annotated[int, Field(ge=1)] = 1
    target_tokens: Annotated[int, Field(ge=1)] = 1
    min_entropy: Nats = 0.5
    top_share: Part = 0.2
    curriculum_batches: Annotated[int, Field(ge=0)] = 0
    final_min_entropy: Nats = 0.5
    final_top_share: Part = 0.2

    def of_batch(self, batch: int) -> Self:
        """Where the curriculum stands at a batch (from 0), with no curriculum left."""
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

    def select(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """Positions of a document.

        Raises:
            InvalidInput: entropies are asked for and the document carries none.
        """
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
        """The most that :meth:`select` gives for a window of that many tokens."""
        return window_tokens if self.positions == "all" else self.num_positions


class SelectingObjective(Objective):
    """An objective that thinks where its configuration, a :class:`Selection`, says."""

    def of_batch(self, batch: int) -> Self:
        """Where the curriculum stands, if there is one."""
        config: Selection = self.config
        placed = config.of_batch(batch)
        return self if placed is config else type(self)(placed)

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """As the selection's parameters say."""
        selection: Selection = self.config
        return selection.select(document, rng)

    def max_positions(self, window_tokens: int) -> int:
        """As the selection's parameters say."""
        selection: Selection = self.config
        return selection.max_positions(window_tokens)


def _between(first: float, final: float, progress: float) -> float:
    return first + progress * (final - first)
