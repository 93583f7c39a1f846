"""Which tokens a source marks: those of its records' marks, and those of a pattern over its text.

Design: a pattern (``[0-9]+``) is matched over a whole document before it is cut into windows, and marks
every token that holds any part of a match: all tokens of a number of several, and the one token of `` 18``,
whose match begins after its space. Whitespace that belongs to no token marks none. Token ids are matched in
the text that they spell; special tokens are no text. The price: a pattern that should mark only where a
match begins has to say so itself (``(?<![0-9])[0-9]``).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate

Span = tuple[int, int]
"""Start and end, the end not included."""

_NO_TEXT = b"\0"
_ENCODING = ("utf-8", "surrogateescape")  # one character for every byte that is no text


def tokens_at(marks: Collection[int], offsets_N: Sequence[Span]) -> list[int]:
    """Indices of the tokens that contain the marked characters, ascending; of whitespace, the next."""
    if not marks:
        return []
    ends_N = [end for _, end in offsets_N]
    indices = {bisect_right(ends_N, mark) for mark in marks}
    return sorted(index for index in indices if index < len(ends_N))


def tokens_in(spans: Iterable[Span], offsets_N: Sequence[Span]) -> list[int]:
    """Indices of the tokens that hold any part of the spans, ascending."""
    starts_N, ends_N = [start for start, _ in offsets_N], [end for _, end in offsets_N]
    found: set[int] = set()
    for start, end in spans:
        found.update(range(bisect_right(ends_N, start), bisect_left(starts_N, end)))
    return sorted(found)


def matches(pattern: str, text: str, start: int = 0) -> Iterator[Span]:
    """The characters of every match in the text from ``start`` on, as if it began there."""
    for match in re.finditer(pattern, text[start:]) if pattern else ():
        if match.end() > match.start():
            yield start + match.start(), start + match.end()


def tokens_matching(pattern: str, spelling: Sequence[bytes], separator: bytes) -> list[int]:
    """Indices of tokens that hold any part of a match in the text that they spell, ascending.

    ``spelling`` are the bytes of each token, empty for one that is no text; ``separator`` stands between
    tokens whose vocabulary does not define what does.
    """
    pieces = [piece or _NO_TEXT for piece in spelling]
    text = separator.join(pieces).decode(*_ENCODING)
    bytes_before = [0, *accumulate(len(character.encode(*_ENCODING)) for character in text)]
    ends = accumulate(len(piece) + len(separator) for piece in pieces)
    offsets = [
        (end - len(separator) - len(piece), end - len(separator))
        for end, piece in zip(ends, pieces, strict=True)
    ]
    spans = ((bytes_before[start], bytes_before[end]) for start, end in matches(pattern, text))
    return tokens_in(spans, offsets)
