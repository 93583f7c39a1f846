"""How many tasks a worker takes at once: fewer while it finishes none of them in time.

Design: tasks taken together finish together, so a replica that needs longer for ``max_batch_tasks`` than a
batch of the learner may take would never finish any. The size is halved whenever tasks in hand are closed
and none has been finished in time since that happened last; it is doubled after some in a row that were
in time, and each halving raises how many. A replica that is only too slow for a whole batch keeps its
size: a smaller one would not make it faster. The price: after an overload, a replica works in smaller
batches for a while.
"""

from __future__ import annotations

_PATIENCE = 4
_LONGEST_PATIENCE = 64


class BatchSize:
    """``now``: tasks to take at once, at most ``limit``.

    Example:
        ``size = BatchSize(8); size.closed(); size.now  # 4``
    """

    def __init__(self, limit: int) -> None:
        self.limit = self.now = limit
        self._patience = _PATIENCE
        self._num_in_time = 0  # since tasks in hand were last closed

    def finished_in_time(self) -> None:
        """Work was finished, and no part of it had been closed."""
        self._num_in_time += 1
        if self._num_in_time >= self._patience and self.now < self.limit:
            self.now = min(2 * self.now, self.limit)
            self._num_in_time = 0

    def closed(self) -> None:
        """Part of the work in hand was closed before it was finished."""
        if not self._num_in_time:
            self.now = max(1, self.now // 2)
            self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
        self._num_in_time = 0
