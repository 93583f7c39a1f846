r"""Whether a prediction is right, without any model: by bytes, exactly, or as a number.

Design: three small pure rules, each stated whole, rather than one clever one. A wrong *prediction*
is never an error, whatever it holds; a *truth* that cannot be compared is, because it is the
caller's data. The price of ``numeric`` being small: units, currencies, words and mixed numbers are
not understood.

- ``byte_prefix`` (RPT, B1): the prediction's UTF-8 bytes are the first bytes of the truth's, and
  end where one of the truth's tokens ends. An empty prediction is wrong.
- ``exact``: the same bytes; whitespace counts.
- ``numeric``: both are numbers and equal as exact fractions, after whitespace around them is
  removed. A number is an optional sign (``+``, ``-`` or U+2212), ASCII digits, plain or with a comma
  before every group of three (``1,000``), an optional decimal part (``1000.0``, ``.5``, ``5.``), an
  optional exponent (``1e3``, at most three digits), and an optional ``%``, which divides by 100; or
  a fraction of two plain whole numbers (``1/2``, ``-3 / 4``, ``1/2%``), the lower one not zero. So
  ``1,000`` = ``1000.0`` = ``1e3`` and ``50%`` = ``1/2`` = ``0.5``. Nothing is rounded: ``0.33`` is not
  ``1/3``. Longer than 1,000 characters is no number.
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
    r"(?P<sign>[+\-\u2212]?)\s*"
    r"(?:(?P<upper>[0-9]+)\s*/\s*(?P<lower>[0-9]+)"
    r"|(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<power>[+-]?[0-9]{1,3}))?)"
    r"\s*(?P<percent>%?)"
)


def byte_prefix(prediction: str, truth: str, token_bytes: Sequence[int]) -> bool:
    """Whether the prediction is some first tokens of the truth; ``token_bytes`` are their lengths.

    Raises:
        InvalidInput: the lengths do not add up to the truth's bytes.
    """
    right = truth.encode()
    if sum(token_bytes) != len(right):
        raise InvalidInput(
            f"token_bytes adds up to {sum(token_bytes)}, the truth has {len(right)} bytes in "
            "UTF-8; expected the byte length of every token of the truth"
        )
    return is_byte_prefix(prediction.encode(), right, set(accumulate(token_bytes)))


def exact(prediction: str, truth: str) -> bool:
    """Whether both are the same text, byte for byte."""
    return prediction == truth


def numeric(prediction: str, truth: str) -> bool:
    """Whether both are the same number; a prediction that is no number is wrong.

    Raises:
        InvalidInput: the truth is no number.
    """
    right = number_of(truth)
    if right is None:
        raise InvalidInput(
            f"truth is {truth[:40]!a}, which is no number; expected one such as 1,000, "
            "1000.0, 50% or 1/2; compare with kind exact instead"
        )
    return number_of(prediction) == right


def number_of(text: str) -> Fraction | None:
    """The number that a text is, exactly; None where it is none."""
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
