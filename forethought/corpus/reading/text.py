"""Text files: one document up to ``BLOCK_BYTES``, byte for byte.

Design: the text reader of ``datasets`` turns ``\\r\\n`` into ``\\n``; this one keeps every byte except a
leading byte order mark. The price: a longer file is cut at the last line break (else space, else character)
before that size, every block is a document of its own, and a file is read twice, because whether all of it
is UTF-8 has to be known before its first document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from forethought.corpus.reading.compression import open_bytes
from forethought.corpus.reading.listing import SourceFile
from forethought.corpus.reading.report import HoldsNoRecords

BLOCK_BYTES = 256 << 10
_SNIFFED_BYTES = 8000  # git's rule: a NUL among the first 8,000 bytes means binary


def read_text(file: SourceFile) -> Iterator[str]:
    """The blocks of a text file.

    Raises:
        HoldsNoRecords: it is binary or not UTF-8; before the first block.
        InvalidInput: it cannot be read.
    """
    with open_bytes(file.path) as stream:
        for offset, block in _blocks(stream):
            _check_text(file, offset, block)
    with open_bytes(file.path) as stream:
        for offset, block in _blocks(stream):
            text = block.decode("utf-8")
            yield text if offset else text.removeprefix("\ufeff")


def _check_text(file: SourceFile, offset: int, block: bytes) -> None:
    nul = block.find(b"\0", 0, _SNIFFED_BYTES) if offset == 0 else -1
    if nul >= 0:
        raise HoldsNoRecords(
            f"{str(file.path)!r}: got a zero byte at byte offset {nul}, expected UTF-8 text; a binary "
            "file is no text: convert it, or remove the zeros",
            "binary",
        )
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HoldsNoRecords(
            f"{str(file.path)!r}: got byte 0x{block[error.start]:02x} at byte offset "
            f"{offset + error.start}, expected UTF-8; convert the file, for example with iconv",
            "not UTF-8 text",
        ) from error


def _blocks(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(byte offset, bytes) of consecutive blocks; never cut inside a valid UTF-8 character."""
    offset, rest = 0, b""
    while block := rest + stream.read(BLOCK_BYTES - len(rest)):
        end = len(block) if len(block) < BLOCK_BYTES else _cut_index(block)
        yield offset, block[:end]
        offset, rest = offset + end, block[end:]


def _cut_index(block: bytes) -> int:
    """After the last line break; else before the last space; else between two characters."""
    end = block.rfind(b"\n") + 1
    if end <= 0:
        end = block.rfind(b" ")
    if end <= 0:
        # The last character starts at the last byte that is not a continuation byte (0b10xxxxxx).
        starts = (back for back in range(1, 5) if block[-back] & 0xC0 != 0x80)
        end = len(block) - next(starts, 0)
    return end
