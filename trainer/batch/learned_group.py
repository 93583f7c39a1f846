"""One position's thoughts on their way from a scored rollout to the learner's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forethought.types import ScoredRollout, Task, Thought


@dataclass(frozen=True, slots=True)
class LearnedGroup:
    """Position ``k`` of a sound result, with its rewards as learned from (penalties taken off).

    Example:
        ``LearnedGroup(result, k=0, rewards_G=(0.9, -0.2))``
    """

    result: ScoredRollout
    k: int
    rewards_G: tuple[float, ...]

    @property
    def task(self) -> Task:
        """What was asked for."""
        return self.result.rollout.task

    @property
    def index(self) -> int:
        """Where in the trunk the thoughts stand."""
        return self.task.positions_K[self.k].index

    @property
    def thoughts_G(self) -> tuple[Thought, ...]:
        """What was sampled there."""
        return self.result.rollout.thoughts_KG[self.k]

    @property
    def policy_logprobs_G(self) -> tuple[float, ...]:
        """log p(target | context, thought) in nats; empty where the objective asks for none."""
        return self.result.policy_logprobs_KG[self.k]

    def close_ids(self, thought: Thought) -> tuple[int, ...]:
        """What still follows a thought before its target."""
        return self.task.prompting.remaining_close(thought.closed)


def groups_of(results: Sequence[ScoredRollout]) -> list[LearnedGroup]:
    """Every position of every result."""
    return [
        LearnedGroup(result, k, rewards_G)
        for result in results
        for k, rewards_G in enumerate(result.rewards_KG)
    ]
