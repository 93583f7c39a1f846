"""One position's thoughts, between a scored rollout and the learner's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forethought.types import ScoredRollout, Task, Thought


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """Position ``k`` of a successful result, with the rewards to train on (penalties subtracted).

    Example:
        ``TrainingGroup(result, k=0, rewards_G=(0.9, -0.2))``
    """

    result: ScoredRollout
    k: int
    rewards_G: tuple[float, ...]

    @property
    def task(self) -> Task:
        """The task that the result answers."""
        return self.result.rollout.task

    @property
    def index(self) -> int:
        """The trunk index at which the thoughts branch off."""
        return self.task.positions_K[self.k].index

    @property
    def thoughts_G(self) -> tuple[Thought, ...]:
        """The thoughts sampled at this position."""
        return self.result.rollout.thoughts_KG[self.k]

    @property
    def policy_logprobs_G(self) -> tuple[float, ...]:
        """log p(target | context, thought) in nats; empty if the objective requests no likelihoods."""
        return self.result.policy_logprobs_KG[self.k]

    def close_ids(self, thought: Thought) -> tuple[int, ...]:
        """The closing tokens still missing between a thought and its target."""
        return self.task.prompting.remaining_close(thought.closed)


def groups_of(results: Sequence[ScoredRollout]) -> list[TrainingGroup]:
    """Every position of every result."""
    return [
        TrainingGroup(result, k, rewards_G)
        for result in results
        for k, rewards_G in enumerate(result.rewards_KG)
    ]
