"""Warm-up: teach a model its think markers on any text, without worked thoughts.

    x_<t <think> c </think> x_t x_t+1 …        c sampled by the model itself, of a length drawn at random

A pretrained model has never seen the markers: its thoughts do not end, and whatever follows them is worse
predicted than without them, by nats. Next-token loss on texts with the model's own thoughts in them
teaches both in hundreds of thoughts. True quotes as thoughts would teach to copy them, and a weight on
sampled closes alone to close at once; a length drawn at random, with a weight on each of its tokens, says
"not yet" as often as "now".

Design: the learner samples these few tokens itself, so that no replica is needed before a model can
think. The price is that sampling is not spread over replicas; it is a fifth of a step.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from forethought.objectives.parts import prompts
from forethought.objectives.parts.base import Group, Mode
from forethought.objectives.parts.selection import SelectingObjective, Selection

_LONGEST = 32
"""Unless configured; a model that closes such thoughts by itself learns longer ones from its reward."""

Tokens = Annotated[int, Field(ge=1)]


class WarmupConfig(Selection):
    """Where to think, how long, what weighs, and when the model knows its markers.

    Lengths are uniform from ``min_thought_tokens`` to ``max_thought_tokens`` (0: half of
    ``sampling.max_thought_tokens``, 32 at most). Up to ``text_tokens`` after a close are learned; the
    first weighs ``target_weight``, the others 1, those of the thought and its close ``thought_weight``.
    The loss of the same windows without thoughts, which keeps the model as good without them, weighs
    ``plain_weight``. Embedding rows of markers that were added have ``marker_rate`` times the learning
    rate, because a new row moves by the rate alone. The end: at ``measured_documents`` other windows of
    the corpus, with the run's own sampling, an average thought costs at most ``max_cost_nats`` and at
    least ``min_closed_share`` of the thoughts close by themselves; measured every
    ``measure_every_steps``.

    Example:
        ``WarmupConfig(positions="uniform", max_thought_tokens=12)``
    """

    prompt: Literal["plain", "v2"] = "plain"
    num_positions: Tokens = 4
    thoughts_per_position: Tokens = 1
    min_thought_tokens: Tokens = 4
    max_thought_tokens: Annotated[int, Field(ge=0)] = 0
    text_tokens: Tokens = 32
    thought_weight: Annotated[float, Field(gt=0)] = 1.0
    target_weight: Annotated[float, Field(gt=0)] = 4.0
    plain_weight: Annotated[float, Field(ge=0)] = 0.25
    marker_rate: Annotated[float, Field(ge=1)] = 50.0
    max_cost_nats: Annotated[float, Field(gt=0)] = 0.3
    min_closed_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    measured_documents: Tokens = 32
    measure_every_steps: Tokens = 20

    @model_validator(mode="after")
    def _check_lengths(self) -> WarmupConfig:
        if 0 < self.max_thought_tokens < self.min_thought_tokens:
            raise ValueError(
                f"max_thought_tokens is {self.max_thought_tokens}, min_thought_tokens "
                f"{self.min_thought_tokens}; expected the first to be at least the second"
            )
        return self

    def lengths(self, budget_tokens: int) -> tuple[int, int]:
        """The shortest and the longest thought of a run with this budget, without the close."""
        half = min(_LONGEST, budget_tokens // 2)
        longest = self.max_thought_tokens or max(self.min_thought_tokens, half)
        longest = max(1, min(longest, budget_tokens - 1))
        return min(self.min_thought_tokens, longest), longest


class Warmup(SelectingObjective):
    """Learn what a thought's end looks like, and to go on after it."""

    Config = WarmupConfig
    models = frozenset()
    mode = Mode.WARM_UP

    def __init__(self, config: WarmupConfig) -> None:
        super().__init__(config)
        self.template = prompts.RLP_V2 if config.prompt == "v2" else None

    def rewards(self, group: Group) -> tuple[float, ...]:
        """Zero for every thought, should one be scored."""
        return (0.0,) * len(group.thoughts_G)
