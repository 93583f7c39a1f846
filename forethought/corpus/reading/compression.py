"""A file as a stream of its bytes, decompressed on the way.

Design: Arrow's streams decompress gzip, bzip2 and Zstandard alike, whole or concatenated, and report a file
that ends too early, which the Zstandard package does not. Nothing is ever decompressed to disk or as a
whole, so memory does not depend on what a small file expands to. The price: the codec is chosen by the
file's name alone, and Zstandard files with windows beyond 128 MiB (``--long=31``) are refused.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from forethought.errors import InvalidInput

_ARROW_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
SUFFIXES = frozenset({*_ARROW_CODECS, ".xz"})
"""Suffixes of compressed files; the suffix before it tells the format."""


@contextmanager
def open_bytes(file: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file.

    Raises:
        InvalidInput: the file cannot be read, or is damaged or cut short; from within the block.
    """
    try:
        with file.open("rb") as raw:
            yield _decompressed(raw, file.suffix.lower())
    except (OSError, EOFError, lzma.LZMAError) as error:
        how = " or decompressed" if file.suffix.lower() in SUFFIXES else ""
        raise InvalidInput(
            f"{str(file)!r} cannot be read{how}: {error}; expected a whole, readable file; repair or "
            "remove it, or set corpus.skip_invalid=true"
        ) from error


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(raw))
    if suffix not in _ARROW_CODECS:
        return raw
    import pyarrow as pa

    stream = pa.CompressedInputStream(raw, _ARROW_CODECS[suffix])
    return cast(BinaryIO, io.BufferedReader(stream))
