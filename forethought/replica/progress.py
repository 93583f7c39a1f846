"""When a replica's work last advanced, noted by what computes and read by what holds the leases."""

from __future__ import annotations

import time


class Progress:
    """The time of the last advance: a token, a forward pass, an engine's answer. Any thread may note it.

    Example:
        ``progress.note(); time.monotonic() - progress.at_s``
    """

    def __init__(self) -> None:
        self.at_s = time.monotonic()

    def note(self) -> None:
        """The work has advanced."""
        self.at_s = time.monotonic()
