"""What a Generate request, and all of them together, may cost.

Design: limits are in samples and tokens, the units of an engine's time and memory, and are checked by
counting, before ids are unpacked. The price is that tokens are counted as if no thought ended early.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from forethought.errors import Overloaded, TooLarge
from forethought.types import Sampling

_MAX_STOP_IDS = 1024


@dataclass(frozen=True, slots=True)
class GenerateLimits:
    """``max_group_size`` thoughts and ``max_request_tokens`` of one request; tokens of all that wait.

    Example:
        ``GenerateLimits(max_group_size=1024)``
    """

    max_group_size: int = 1024
    max_request_tokens: int = 1 << 20
    max_waiting_tokens: int = 4 << 20

    def check(self, num_prefix_tokens: int, sampling: Sampling) -> int:
        """The tokens of a request: of its prefix and response, for each thought.

        Raises:
            TooLarge: more thoughts, stop tokens or tokens than one request may have.
        """
        if sampling.group_size > self.max_group_size:
            raise TooLarge(
                f"got group_size {sampling.group_size}; expected at most {self.max_group_size} thoughts in "
                "one request; split it into several, each with its own seed, or raise "
                "rollout.max_group_size"
            )
        stops = (sampling.stop_ids, sampling.prediction_stop_ids, *sampling.stop_sequences)
        num_stop_ids = sum(map(len, stops))
        if num_stop_ids > _MAX_STOP_IDS:
            raise TooLarge(
                f"got {num_stop_ids} stop tokens; expected at most {_MAX_STOP_IDS}; remove some"
            )
        num_row_tokens = num_prefix_tokens + sampling.max_response_tokens
        num_tokens = sampling.group_size * num_row_tokens
        if num_tokens > self.max_request_tokens:
            raise TooLarge(
                f"got a request for {sampling.group_size} thoughts of {num_row_tokens} tokens with their "
                f"prefix; expected at most {self.max_request_tokens} tokens in all; split it into several, "
                "or raise rollout.max_request_tokens"
            )
        return num_tokens


class Waiting:
    """The tokens of all requests in progress.

    Example:
        ``with waiting.counted(num_tokens): ...``
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0

    @contextmanager
    def counted(self, num_tokens: int) -> Iterator[None]:
        """Count a request while it is in progress.

        Raises:
            Overloaded: with those in progress it would be too many.
        """
        if self._num_tokens and self._num_tokens + num_tokens > self._max_tokens:
            raise Overloaded(
                f"requests for {self._num_tokens} tokens are in progress and this one adds {num_tokens}; "
                f"expected at most {self._max_tokens} in total (rollout.max_waiting_tokens); retry later"
            )
        self._num_tokens += num_tokens
        try:
            yield
        finally:
            self._num_tokens -= num_tokens
