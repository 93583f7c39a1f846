"""The memory of bodies: those that are arriving, waiting, or being answered, over HTTP and gRPC together.

Design: counted as they arrive, because four thousand connections of 8 MiB each would exhaust a machine
before any of their requests is complete. Small requests have half of it to themselves, so that a few
connections with large bodies do not keep them out. The price is that a flood of large requests has other
large ones refused (429) until it is answered.
"""

from __future__ import annotations

from forethought.errors import Overloaded
from services.reward.conversions import LARGE


class BodyMemory:
    """Bytes of requests that were received and not yet answered, over all callers of a service.

    Example:
        ``memory.take(len(chunk)); ...; memory.release(num_bytes)``
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int, num_held: int = 0) -> None:
        """Count bytes of a request that holds ``num_held`` already; all are to be released.

        Raises:
            Overloaded: there would be too many; nothing was taken.
        """
        is_large = num_held + num_bytes > LARGE
        max_bytes = self._max_bytes // 2 if is_large else self._max_bytes
        if self.num_bytes + num_bytes > max_bytes:
            part = "half, for a large request, of " if is_large else ""
            raise Overloaded(
                f"{self.num_bytes} bytes of requests are being received or answered; expected at most "
                f"{max_bytes}, {part}reward.max_waiting_bytes; retry later"
            )
        self.num_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Bytes are no longer held."""
        self.num_bytes -= num_bytes
