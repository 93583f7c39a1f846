"""The verifier protocol, and the verifier that compares text.

Design: a verifier takes one ground truth and several answers at once, because a group's thoughts often give
the same answer and an expensive verifier should check each distinct one once. Any internal failure counts
as a wrong answer and never raises: a policy must not be able to stop its own training by its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Verifier(Protocol):
    """Decides which answers are right."""

    def are_right(self, truth: str, answers: Sequence[str]) -> tuple[bool, ...]:
        """One verdict per answer, in order; an answer that cannot be judged is wrong."""
        ...


class ExactVerifier:
    """An answer is right if it equals the truth exactly, apart from surrounding whitespace.

    Example:
        ``ExactVerifier().are_right(" 6", ["6", "6.0"]) == (True, False)``
    """

    def are_right(self, truth: str, answers: Sequence[str]) -> tuple[bool, ...]:
        """One verdict per answer, in order."""
        return tuple(is_same_text(truth, answer) for answer in answers)


def is_same_text(truth: str, answer: str) -> bool:
    """Equality after stripping whitespace at both ends; an empty answer equals nothing."""
    return bool(answer.strip()) and answer.strip() == truth.strip()
