"""RLP, reinforcement as a pretraining objective (arXiv 2510.01265, version 2).

Reward, eq. 5:   r(c) = log p_policy(x_t | x_<t, c) - log p_baseline(x_t | x_<t)
Advantage, eq. 7: A_i = G/(G-1) (r_i - mean r), the leave-one-out advantage, no standard deviation.
Loss, eq. 8:     per-thought mean of the clipped surrogate, then the mean over B groups and G thoughts.

Design: the no-think baseline is the same number for all G thoughts of a position, so it cancels in A
exactly; it is computed because the reported information gain is this reward, and because it no longer
cancels once the reward is floored, clipped or compared with a threshold. As published, one position per
document is drawn uniformly and the target is one token; ``target_tokens`` > 1 sums the teacher-forced
log-probs. The relatives differ in their reward alone, so each is a parameter and not a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from forethought.objectives.parts import prompts
from forethought.objectives.parts.base import Group, Imitation
from forethought.objectives.parts.selection import SelectingObjective, Selection


class RlpConfig(Selection):
    """Where to think, how far to look ahead, the prompt, and the reward.

    ``prompt`` "v2" is the paper's system message, in our words; "plain" is the think markers alone.
    ``reward`` is the gain of eq. 5 over the configured ``[baseline]`` (ema, frozen, or none: the current
    policy), log p(target | thought) alone, or its probability (VeriFree, arXiv 2505.21493). ``transform``
    then floors it at 0 (NRT, arXiv 2602.11549), clips it to +-``clip_nats``, or makes it 1 above
    ``threshold`` and 0 elsewhere. Tasks of the batches before ``floor_until_batch`` use the floor,
    regardless of ``transform``. ``answer_nll_coef`` weighs the mean of -log p(target | thought): the part
    of the gradient of E[log p(target | thought)] that RLP drops (JEPO, arXiv 2503.19618).

    Example:
        ``RlpConfig(positions="marked", num_positions=1, target_tokens=1, transform="floor")``
    """

    prompt: Literal["plain", "v2"] = "plain"
    reward: Literal["gain", "logprob", "probability"] = "gain"
    transform: Literal["identity", "floor", "clip", "threshold"] = "identity"
    clip_nats: Annotated[float, Field(gt=0)] = 1.0
    threshold: float = 0.0
    floor_until_batch: Annotated[int, Field(ge=0)] = 0
    answer_nll_coef: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _floor_has_two_sides(self) -> RlpConfig:
        if self.reward != "gain" and (self.transform == "floor" or self.floor_until_batch):
            raise ValueError(
                f"a {self.reward} has one sign, so a floor at 0 keeps all of it or nothing; expected "
                'reward = "gain" with transform = "floor" or floor_until_batch'
            )
        return self


class Rlp(SelectingObjective):
    """Reward a thought by the information it adds about the next token."""

    Config = RlpConfig

    def __init__(self, config: RlpConfig) -> None:
        super().__init__(config)
        self.template = prompts.RLP_V2 if config.prompt == "v2" else None

    def of_batch(self, batch: int) -> Self:
        """Floored in the first batches, and at the curriculum's current threshold, if configured."""
        placed = super().of_batch(batch)
        config: RlpConfig = placed.config
        if not config.floor_until_batch:
            return placed
        transform = "floor" if batch < config.floor_until_batch else config.transform
        changes = {"transform": transform, "floor_until_batch": 0}
        return type(self)(config.model_copy(update=changes))

    def rewards(self, group: Group) -> tuple[float, ...]:
        """The log-likelihood ratio of eq. 5 in nats, or its configured variant. Shape [G]."""
        return tuple(
            self._transformed(self._reward(logprob, group.baseline_logprob))
            for logprob in group.policy_logprobs_G
        )

    def imitation(self, rewards_G: Sequence[float]) -> Imitation | None:
        """The pathwise term: every answer weighs ``answer_nll_coef`` / G."""
        size = len(rewards_G)
        if not self.config.answer_nll_coef:
            return None
        return Imitation((0.0,) * size, (self.config.answer_nll_coef / size,) * size)

    def _reward(self, policy_logprob: float, baseline_logprob: float) -> float:
        if self.config.reward == "gain":
            return policy_logprob - baseline_logprob
        return policy_logprob if self.config.reward == "logprob" else math.exp(policy_logprob)

    def _transformed(self, reward: float) -> float:
        clip: float = self.config.clip_nats
        match self.config.transform:
            case "floor":
                return max(0.0, reward)
            case "clip":
                return max(-clip, min(clip, reward))
            case "threshold":
                return float(reward > self.config.threshold)
            case _:
                return reward
