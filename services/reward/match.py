r"""Whether a prediction is correct, without any model: by bytes, exactly, or as a number.

Design: three small pure rules, each fully specified, rather than one clever one. A wrong *prediction* is
never an error, whatever it holds; a *truth* that cannot be compared is an error, because it is the caller's
data. The price of keeping ``numeric`` small: units, currencies, number words and mixed numbers are not
parsed.

- ``byte_prefix`` (arXiv 2506.08007, eq. 2): the prediction's UTF-8 bytes begin the truth's and end
  at one of the truth's token boundaries. An empty prediction is wrong.
- ``exact``: the same bytes, whitespace included.
- ``numeric``: both are numbers and equal as exact fractions, after surrounding whitespace is
  stripped. A number is an optional sign (``+``, ``-`` or U+2212), ASCII digits, plain or with a comma
  before every group of three (``1,000``), an optional decimal part (``1000.0``, ``.5``, ``5.``), an
  optional exponent (``1e3``, at most three digits), and an optional ``%``, which divides by 100; or
  a fraction of two plain whole numbers (``1/2``, ``-3 / 4``, ``1/2%``) with a nonzero denominator. So
  ``1,000`` = ``1000.0`` = ``1e3`` and ``50%`` = ``1/2`` = ``0.5``. Nothing is rounded: ``0.33`` is not
  ``1/3``. A text longer than 1,000 characters is not a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from forethought.errors import InvalidInput
from forethought.objectives.parts.grading import is_byte_prefix

KINDS = ("byte_prefix", "exact", "numeric")

_MAX_CHARACTERS = 1000
_NUMBER = re.compile(
    r"(?P<sign>[+\-\u2212]?)\s*+"
    r"(?:(?P<upper>[0-9]++)\s*+/\s*+(?P<lower>[0-9]++)"
    r"|(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<power>[+-]?[0-9]{1,3}))?)"
    r"\s*+(?P<percent>%?)"
)


def byte_prefix(prediction: str, truth: str, token_bytes: Sequence[int]) -> bool:
    """Whether the prediction is a prefix of the truth's tokens; ``token_bytes`` are all their lengths.

    Raises:
        InvalidInput: the lengths do not sum to the truth's bytes.
    """
    right = truth.encode()
    if max(token_bytes, default=0) > len(right):  # a sum of 4,301 digits could not be printed
        raise InvalidInput(
            f"token_bytes holds a greater length than that of the truth, the truth has {len(right)} "
            "bytes in UTF-8; expected the byte length of every token of the truth"
        )
    if sum(token_bytes) != len(right):
        raise InvalidInput(
            f"token_bytes sums to {sum(token_bytes)}, the truth has {len(right)} bytes in "
            "UTF-8; expected the byte length of every token of the truth"
        )
    return is_byte_prefix(prediction.encode(), right, set(accumulate(token_bytes)))


def exact(prediction: str, truth: str) -> bool:
    """Whether both are the same text, byte for byte."""
    return prediction == truth


def numeric(prediction: str, truth: str) -> bool:
    """Whether both are the same number; a prediction that is not a number is wrong.

    Raises:
        InvalidInput: the truth is not a number.
    """
    right = number_of(truth)
    if right is None:
        raise InvalidInput(
            f"truth is {truth[:40]!a}, which is not a number; expected one such as 1,000, "
            "1000.0, 50% or 1/2; use kind exact for other text"
        )
    return number_of(prediction) == right


def number_of(text: str) -> Fraction | None:
    """A text as an exact fraction; None if it is not a number."""
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _MAX_CHARACTERS else None
    if match is None:
        return None
    size = _fraction(match) if match["lower"] else _decimal(match)
    if size is None:
        return None
    size = size / 100 if match["percent"] else size
    return size if match["sign"] in ("", "+") else -size


def _fraction(match: re.Match[str]) -> Fraction | None:
    lower = int(match["lower"])
    return Fraction(int(match["upper"]), lower) if lower else None


def _decimal(match: re.Match[str]) -> Fraction | None:
    whole, part = match["whole"].replace(",", ""), match["part"] or ""
    if not whole and not part:
        return None
    return Fraction(int(whole + part)) * Fraction(10) ** (int(match["power"] or 0) - len(part))
