"""When a warm-up is over: thoughts close by themselves, and an average one costs about nothing."""

from __future__ import annotations

import logging

from forethought.objectives.warmup import WarmupConfig
from trainer.assembly import Assembly
from trainer.warmup.measurement import Worth, set_aside, worth_of_thoughts

log = logging.getLogger(__name__)


class WarmupGoal:
    """Measures the model now and then, on windows taken from the corpus before anything is trained on."""

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts
        config: WarmupConfig = parts.objective.config
        self._config = config
        self._documents = set_aside(parts.corpus, config.measured_documents)
        self.worth: Worth | None = None  # the newest

    @property
    def is_reached(self) -> bool:
        """Whether the newest measurement ends the warm-up."""
        return self.worth is not None and is_warm(self.worth, self._config)

    def measure(self, step: int, *, is_first: bool) -> dict[str, float]:
        """The worth of thoughts now, every ``measure_every_steps``, and when a learner begins and ends."""
        is_last = step == self._parts.settings.learner.steps
        if step % self._config.measure_every_steps and not (is_first or is_last):
            return {}
        self.worth = worth_of_thoughts(self._parts, self._parts.objective, self._documents)
        log.info("warm-up: step %d: %s", step, self.worth)
        return self.worth.values()


def is_warm(worth: Worth, config: WarmupConfig) -> bool:
    """Whether a model's thoughts end by themselves and cost no more than allowed."""
    is_cheap = worth.information_gain >= -config.max_cost_nats
    return is_cheap and worth.closed_share >= config.min_closed_share
