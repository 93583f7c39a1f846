"""Next-token prediction: the plain loss that base models and continued pre-training (CPT) use.

Design: it is an objective like any other, so that base, CPT and reinforcement share corpus, learner,
checkpoints and metrics. It samples no thoughts: its documents go from the feed to the learner directly,
weighted by ``nll_weights_N``.
"""

from __future__ import annotations

from random import Random

from pydantic import BaseModel, ConfigDict

from forethought.objectives.parts.base import Group, Mode, Objective
from forethought.types import Document, Position


class NtpConfig(BaseModel):
    """Next-token prediction has no parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ntp(Objective):
    """Predict every token of every document."""

    Config = NtpConfig
    models = frozenset()
    mode = Mode.NEXT_TOKEN

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """None: the whole document is learned."""
        return ()

    def rewards(self, group: Group) -> tuple[float, ...]:
        """Zero for every thought, should one be scored."""
        return (0.0,) * len(group.thoughts_G)
