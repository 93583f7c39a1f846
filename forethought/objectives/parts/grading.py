"""Byte-level grading of predictions: RPT's rewards (arXiv 2506.08007, section 3.2, appendix A).

Design: a prediction and the ground truth are compared as bytes, and valid ends are token boundaries: the
truth's as stored in the corpus, the prediction's as sampled. Nothing is decoded to text or tokenised
again, so partial characters and token boundaries inside a word are exactly the model's. The price is that a
token split by a brace (``4}`` as one token) loses its id.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate

_BOX = b"\\boxed{"
_OPEN, _CLOSE = b"{}"


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """Tokens and the bytes of each; a piece that is not a whole token has no id.

    Example:
        ``TokenBytes((262, 1097), (b" the", b" end"))``
    """

    token_ids_L: tuple[int | None, ...]
    pieces_L: tuple[bytes, ...]

    @property
    def text(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces_L)

    @property
    def ends_L(self) -> tuple[int, ...]:
        """The end of every piece: cumulative byte lengths."""
        return tuple(accumulate(map(len, self.pieces_L)))


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The true continuation, and the cumulative byte lengths of its tokens as stored.

    Example:
        ``GroundTruth(b" the end", (4, 8))``
    """

    text: bytes
    ends: tuple[int, ...]


def boxed(answer: TokenBytes) -> TokenBytes | None:
    r"""The full string inside the last ``\boxed{}``; None if there is none or its brace never closes.

    Inner braces are balanced, escaped or not; whitespace is kept.
    """
    text = answer.text
    start = text.rfind(_BOX)
    if start < 0:
        return None
    start += len(_BOX)
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == _OPEN) - (text[end] == _CLOSE)
        if depth == 0:
            return _cut(answer, start, end)
    return None


def in_box(answer: TokenBytes) -> TokenBytes:
    r"""``answer`` inside a ``\boxed{}``, as a model would write it."""
    return TokenBytes((None, *answer.token_ids_L, None), (_BOX, *answer.pieces_L, b"}"))


def is_byte_prefix(prediction: bytes, truth: bytes, ends: Collection[int]) -> bool:
    """RPT's reward: the prediction's l bytes are the truth's first l, and l is in ``ends``; l > 0."""
    return bool(prediction) and truth.startswith(prediction) and len(prediction) in ends


def is_first_token(prediction: TokenBytes, truth: GroundTruth) -> bool:
    """Whether the truth's first token was predicted as a whole token: " parameter" is not " para"."""
    first = truth.ends[0] if truth.ends else 0
    return (
        first > 0 and prediction.text.startswith(truth.text[:first]) and first in prediction.ends_L
    )


def _cut(answer: TokenBytes, start: int, end: int) -> TokenBytes:
    """The bytes from ``start`` to ``end``."""
    token_ids: list[int | None] = []
    pieces: list[bytes] = []
    offset = 0
    for token_id, piece in zip(answer.token_ids_L, answer.pieces_L, strict=True):
        part = piece[max(0, start - offset) : max(0, end - offset)]
        offset += len(piece)
        if part:
            token_ids.append(token_id if part == piece else None)
            pieces.append(part)
    return TokenBytes(tuple(token_ids), tuple(pieces))
