"""Chain-of-thought CPT: sampled thoughts are written into the text, then next-token loss learns it.

    loss   -(1/T) sum of log p over the T tokens of   x_<t <think> c </think> x_>=t

Design: the policy samples the thoughts itself, at the positions that any other objective would use, so
that this control sees the same texts, positions and thoughts as reinforcement and differs in the update
alone. Good and bad thoughts are learned alike, which is what it controls for; the reward, RLP's gain, is
only reported. Every thought counts as a document of its own; one thought per position
(``sampling.group_size = 1``) is enough.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from forethought.objectives.parts.base import Group, Mode
from forethought.objectives.parts.selection import SelectingObjective, Selection


class CotCptConfig(Selection):
    """Where to think. ``thought_weight`` is the weight of a thought's tokens, the text's being 1.

    Example:
        ``CotCptConfig(positions="uniform", thought_weight=1.0)``
    """

    thought_weight: Annotated[float, Field(ge=0)] = 1.0


class CotCpt(SelectingObjective):
    """Train on texts with the policy's own thoughts in them."""

    Config = CotCptConfig
    estimator = "none"
    mode = Mode.WRITE

    def __init__(self, config: CotCptConfig) -> None:
        super().__init__(config)
        self.thought_weight = config.thought_weight

    def rewards(self, group: Group) -> tuple[float, ...]:
        """The gain of each thought, for the metrics alone. Shape [G]."""
        return tuple(logprob - group.baseline_logprob for logprob in group.policy_logprobs_G)
