r"""RPT, reinforcement pre-training (arXiv 2506.08007): a thought, then a prediction that is right or wrong.

Reward, eq. 2:  r = 1 iff the prediction's l bytes are the first l of the true continuation and l is a
cumulative byte length of the corpus's tokens; else 0. Advantages are GRPO's (divided by the group's
standard deviation), the gradient covers thought and prediction, and there is no KL term.

The prediction is the full string inside the last \boxed{} after the thought's close, or, with the plain
prompt for base and tiny models, the ``prediction_tokens`` sampled directly after the close. A thought that
does not close within its budget has no prediction. Appendix A's alternatives: the first token only;
*dense*, where a wrong first token is rewarded with its no-think probability under the model; *conditional
dense*, which is dense if at least one prediction of the group is right.

Design: the reward is computed from bytes, so as published the scorer runs no forward pass; the price is
that no information gain is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from forethought.objectives.parts import prompts
from forethought.objectives.parts.base import Group
from forethought.objectives.parts.grading import (
    GroundTruth,
    TokenBytes,
    boxed,
    in_box,
    is_byte_prefix,
    is_first_token,
)
from forethought.objectives.parts.selection import SelectingObjective, Selection

_PLAIN_TOKENS = 1
_BOXED_TOKENS = 256


class RptConfig(Selection):
    """Position selection, prompt, and the reward of a prediction.

    ``prediction_tokens`` 0 means 1 with the plain prompt and 256 with the others, whose answers end at the
    model's end-of-text token. ``miss_penalty`` is what *conditional_dense* subtracts from every thought of
    a group in which none is right.

    Example:
        ``RptConfig(prompt="plain", positions="entropy", min_entropy=1.0)``
    """

    prompt: Literal["plain", "v0", "v1", "v2", "v3", "v4", "v5", "v6"] = "v0"
    reward: Literal["prefix", "first_token", "dense", "conditional_dense"] = "prefix"
    prediction_tokens: Annotated[int, Field(ge=0)] = 0
    miss_penalty: Annotated[float, Field(ge=0)] = 0.0


class Rpt(SelectingObjective):
    """Reward a thought if the prediction after it is right."""

    Config = RptConfig
    estimator = "group_std"

    def __init__(self, config: RptConfig) -> None:
        super().__init__(config)
        self.template = prompts.RPT.get(config.prompt)
        self.prediction_ends = self.template is not None
        usual = _BOXED_TOKENS if self.template else _PLAIN_TOKENS
        self.prediction_tokens = config.prediction_tokens or usual
        self.models = frozenset({"prediction"} if "dense" in config.reward else ())

    def prediction(self, answer: TokenBytes) -> TokenBytes | None:
        r"""The last ``\boxed{}``, or with the plain prompt the whole answer; None if it is empty."""
        found = boxed(answer) if self.template else answer
        return found if found and found.text else None

    def can_predict(self, token: TokenBytes) -> bool:
        r"""Whether the token survives its ``\boxed{}``: braces that do not balance never do.

        What follows could balance them (``{x}`` after ``{``), but then the next token alone would be wrong.
        """
        answer = in_box(token) if self.template else token
        found = self.prediction(answer)
        return found is not None and found.text == token.text

    def rewards(self, group: Group) -> tuple[float, ...]:
        """Rewards by the configured rule; a thought without a prediction gets 0. Shape [G]."""
        predictions_G = group.predictions_G or (None,) * len(group.thoughts_G)
        truth = group.truth or GroundTruth(b"", ())
        if self.config.reward == "prefix":
            return tuple(
                float(p is not None and is_byte_prefix(p.text, truth.text, truth.ends))
                for p in predictions_G
            )
        right_G = [p is not None and is_first_token(p, truth) for p in predictions_G]
        if self.config.reward == "first_token":
            return tuple(map(float, right_G))
        if self.config.reward == "conditional_dense" and not any(right_G):
            return (-self.config.miss_penalty,) * len(right_G)
        return _dense(right_G, group.prediction_logprobs_G)


def _dense(right_G: Sequence[bool], logprobs_G: Sequence[float]) -> tuple[float, ...]:
    """1 for the right token, otherwise the token's no-think probability (RPT, appendix A)."""
    if not logprobs_G:
        return tuple(map(float, right_G))
    return tuple(
        1.0 if right else math.exp(logprob)
        for right, logprob in zip(right_G, logprobs_G, strict=True)
    )
