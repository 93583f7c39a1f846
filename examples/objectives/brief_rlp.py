"""RLP with a price per character: of two thoughts that help as much, the shorter earns more."""

from __future__ import annotations

from forethought.objectives import Group
from forethought.objectives.rlp import Rlp


class BriefRlp(Rlp):
    """Positions, prompts, parameters and weights are RLP's; only the reward differs."""

    def rewards(self, group: Group) -> tuple[float, ...]:
        """The gain in nats less 0.001 nats per character. Shape [G]."""
        gains = zip(super().rewards(group), group.texts_G, strict=True)
        return tuple(gain - 0.001 * len(text) for gain, text in gains)
