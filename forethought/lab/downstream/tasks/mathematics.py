r"""Grading of the mathematical tasks: the last ``\boxed{}`` against the ground truth, by math-verify.

Design: the same functions that compute RLVR's reward, so that training and evaluation agree.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.verification.mathematics import MathVerifier

_TIMEOUT_S = 5.0


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the last box of the response equals the document's ``answer``, else 0."""
    from forethought.objectives.parts.grading import TokenBytes, boxed

    found = boxed(TokenBytes((None,), (results[0].encode(),)))
    if found is None:
        return {"math_verify": 0.0}
    (is_right,) = _verifier().are_right(str(doc["answer"]), [found.text.decode()])
    return {"math_verify": float(is_right)}


@lru_cache(maxsize=1)
def _verifier() -> MathVerifier:
    from forethought.verification.mathematics import MathVerifier

    return MathVerifier(_TIMEOUT_S)
