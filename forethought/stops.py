"""Where a sample ends: at one of some tokens, or at a sequence of several.

Design: a sequence is compared with the ids that were sampled, never with text, so that what ends a sample
is exact and its log-probs are all there. The price: a model that writes the same characters in other tokens
does not end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stops:
    """Single tokens and sequences of tokens that end a sample, and are part of it.

    Example:
        ``Stops(ids=(40,), sequences=((13, 7, 9),)).end((4, 13, 7, 9)) == 4``
    """

    ids: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()

    @property
    def last_ids(self) -> tuple[int, ...]:
        """The tokens that can complete a stop: after any other one, sampling goes on."""
        return tuple(dict.fromkeys((*self.ids, *(one[-1] for one in self.sequences))))

    def end_here(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens complete a stop."""
        return bool(token_ids) and self._completes(token_ids, len(token_ids))

    def end(self, token_ids: Sequence[int]) -> int | None:
        """How many of these tokens are sampled: up to the first completed stop; None without one."""
        ends = range(1, len(token_ids) + 1)
        return next((end for end in ends if self._completes(token_ids, end)), None)

    def _completes(self, token_ids: Sequence[int], end: int) -> bool:
        return token_ids[end - 1] in self.ids or any(
            len(one) <= end and tuple(token_ids[end - len(one) : end]) == one
            for one in self.sequences
        )
