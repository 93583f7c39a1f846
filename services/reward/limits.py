"""What one request, and all requests together, may cost.

Design: every limit is in the unit of its cost and is checked before that cost is paid: items and thoughts
when they have been counted, characters before they are tokenised, tokens before they are queued, bytes of
bodies while they arrive and of replies before they are computed. The price is a list of settings
(``[reward]``) rather than one, and a refusal of an odd request that might have been affordable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forethought.errors import TooLarge

_REPLY_BYTES_PER_TOKEN = 32  # a token id and a log-prob or an entropy as JSON


@dataclass(frozen=True, slots=True)
class Limits:
    """Load limits of one service.

    ``max_batch_tokens`` bounds one batch and one row of a request. ``max_waiting_tokens`` and
    ``max_waiting_bytes`` bound all admitted requests together: a short body could otherwise demand a long
    context times a million thoughts. ``one_at_a_time`` never puts two jobs in a batch. The others bound
    one request; ``max_request_thoughts`` counts the thoughts of all items, or continuations.

    Example:
        ``Limits(max_batch_tokens=16_384, max_waiting_tokens=1 << 20)``
    """

    max_batch_tokens: int
    max_waiting_tokens: int = 1 << 20
    max_waiting_bytes: int = 256 << 20
    max_request_tokens: int = 1 << 19
    max_request_items: int = 4096
    max_request_thoughts: int = 16_384
    max_text_characters: int = 1 << 18
    max_reply_bytes: int = 32 << 20
    one_at_a_time: bool = False

    def check_items(self, num_items: int) -> None:
        """Refuse a request of too many items."""
        if num_items > self.max_request_items:
            raise TooLarge(
                f"got {num_items} items; expected at most {self.max_request_items} in one request; "
                "split it into several requests, or raise reward.max_request_items"
            )

    def check_thoughts(self, num_thoughts: int, what: str = "thoughts over all items") -> None:
        """Refuse a request of too many thoughts, or continuations."""
        if num_thoughts > self.max_request_thoughts:
            raise TooLarge(
                f"got {num_thoughts} {what}; expected at most {self.max_request_thoughts} in one "
                "request; split it into several requests, or raise reward.max_request_thoughts"
            )

    def check_tokens(self, num_tokens: int) -> None:
        """Refuse a request of too many tokens to compute."""
        if num_tokens > self.max_request_tokens:
            raise TooLarge(
                f"the request has {num_tokens} tokens to compute; expected at most "
                f"{self.max_request_tokens}; split it into several requests, or raise "
                "reward.max_request_tokens"
            )

    def check_row(self, num_tokens: int) -> None:
        """Refuse a row that is longer than a forward pass."""
        if num_tokens > self.max_batch_tokens:
            raise TooLarge(
                f"got a row of {num_tokens} tokens; expected at most {self.max_batch_tokens}, those of "
                "one forward pass; shorten it, or raise reward.max_batch_tokens"
            )

    def check_reply(self, num_tokens: int) -> None:
        """Refuse a request whose reply would hold numbers for too many tokens."""
        num_bytes = num_tokens * _REPLY_BYTES_PER_TOKEN
        if num_bytes > self.max_reply_bytes:
            raise TooLarge(
                f"the reply would hold numbers for {num_tokens} tokens, about {num_bytes} bytes; "
                f"expected at most {self.max_reply_bytes}; split the request into several, or raise "
                "reward.max_reply_bytes"
            )


def num_thoughts(item: Any) -> int:
    """The thoughts of an item that may not be valid."""
    thoughts = item.get("thoughts") if isinstance(item, dict) else getattr(item, "thoughts", ())
    return len(thoughts) if isinstance(thoughts, list | tuple) else 0
