"""No-think log-likelihoods that the same weights have given before.

A position is scored without a thought whenever it is scored with one: again for every piece of a large
group, every epoch over a corpus with a frozen baseline, every request about the same text.

Design: keyed by a digest of the tokens, so that an entry is small whatever the length of its context; the
digest is 128 bits of blake2b, which no caller can make collide. Entries are of one version only, because
weights that changed make all others useless. The price is a digest per branch.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b

from forethought.compute.logprob import Continuation


class ScoredBranches:
    """Totals of the branches most recently scored, at most ``max_entries``.

    Example:
        ``ScoredBranches(65_536).totals(version, branches, score)``
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._version: Hashable = None
        self._totals: OrderedDict[bytes, float] = OrderedDict()

    def totals(
        self,
        version: Hashable,
        branches: Sequence[Continuation],
        score: Callable[[list[Continuation]], list[float]],
    ) -> list[float]:
        """The total of every branch in order; ``score`` is called for those not known of this version."""
        if version != self._version:
            self._version = version
            self._totals.clear()
        keys = [_digest(branch) for branch in branches]
        new = {k: b for k, b in zip(keys, branches, strict=True) if k not in self._totals}
        found = {key: self._totals[key] for key in keys if key in self._totals}
        if new:
            found |= zip(new, score(list(new.values())), strict=True)
        for key in keys:
            self._totals[key] = found[key]
            self._totals.move_to_end(key)
        while len(self._totals) > self._max_entries:
            self._totals.popitem(last=False)
        return [found[key] for key in keys]


def _digest(branch: Continuation) -> bytes:
    removed = -1 if branch.removed_id is None else branch.removed_id
    sizes = (len(branch.prefix_ids), removed)
    numbers = array("q", (*sizes, *branch.prefix_ids, *branch.continuation_ids))
    return blake2b(numbers.tobytes(), digest_size=16).digest()
