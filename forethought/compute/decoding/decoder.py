"""What all forms of decoding have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """``num_rows`` rows that continue one prefix by at most ``max_tokens``.

    Example:
        ``Group((1, 5, 39), num_rows=8, max_tokens=32)``
    """

    prefix_ids: TokenIds
    num_rows: int
    max_tokens: int


class Decoder(Protocol):
    """The rows of a batch that are still alive, R of them, and the logits of their next tokens."""

    @property
    def owners_R(self) -> list[int]:
        """The group of every row; rows of a group keep their order."""

    def first_logits(self) -> torch.Tensor:
        """Of every row's first token, float32. Shape [R, V]."""

    def next_logits(self, ids_R: torch.Tensor) -> torch.Tensor:
        """Append a token to every row; the logits of the token after it. Shape [R, V]."""

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all rows but these, given by their places among the alive ones, in order."""
