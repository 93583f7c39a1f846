"""RFT, rejection fine-tuning: clone the best of G thoughts and ignore the others.

    loss   -(1/B) sum_b (1/|c*|) sum_u log p(c*_u | x_<t, c*_<u)        c* the thought of highest reward

Design: it samples and scores exactly as RLP does (same rewards, same parameters) and replaces only the
update: no advantage, no negative example. That makes it the control for whether reinforcement is needed, at
the same cost. Ties go to the first thought, and a group is cloned even if its best thought is bad, as in
plain best-of-n; ``positive_only`` drops such groups, as rejection does.
"""

from __future__ import annotations

from collections.abc import Sequence

from forethought.objectives.parts.base import Imitation, Mode
from forethought.objectives.rlp import Rlp, RlpConfig


class RftConfig(RlpConfig):
    """RLP's parameters. ``answer_nll_coef`` weighs the answer after the best thought only.

    With ``positive_only`` nothing is cloned if no reward is above 0: with the gain, if no thought helped.

    Example:
        ``RftConfig(positions="marked", positive_only=True)``
    """

    positive_only: bool = False


class Rft(Rlp):
    """Clone the thought with the highest reward."""

    Config = RftConfig
    mode = Mode.IMITATE

    def imitation(self, rewards_G: Sequence[float]) -> Imitation | None:
        """All weight on the first thought of highest reward; None if that is too low."""
        highest = max(rewards_G)
        if self.config.positive_only and highest <= 0:
            return None
        best = list(rewards_G).index(highest)
        cloned_G = [float(g == best) for g in range(len(rewards_G))]
        return Imitation(
            thought_weights_G=tuple(cloned_G),
            answer_weights_G=tuple(self.config.answer_nll_coef * clone for clone in cloned_G),
        )
