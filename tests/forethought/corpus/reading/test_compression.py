"""Compressed files: read like the plain ones, as a stream, and refused by name when damaged."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import zstandard

from forethought.config.sections import SourceSection
from forethought.corpus.reading import text
from forethought.corpus.reading.listing import list_files
from forethought.corpus.sources import open_source
from forethought.errors import InvalidInput

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".xz": lzma.compress,
}
TEXTS = [f"日本語 {i}\r\n" for i in range(2000)]
LINES = "".join(json.dumps({"text": one}) + "\n" for one in TEXTS).encode()
PLAIN = {
    "a.jsonl": LINES,
    "a.json": json.dumps([{"text": one} for one in TEXTS]).encode(),
    "a.csv": b"text\n" + "".join(f'"{one}"\n' for one in TEXTS).encode(),
}


def texts(path: Path, cache: Path, **fields: bool) -> list[str]:
    return list(open_source(SourceSection(path=str(path), **fields), cache)["text"])


@pytest.mark.parametrize("suffix", [*COMPRESS, ".GZ"])
@pytest.mark.parametrize("name", PLAIN)
def test_compressed_records_are_those_of_the_plain_file(
    tmp_path: Path, name: str, suffix: str
) -> None:
    """Beside a README, which was the only file that was read, and by their own name."""
    (tmp_path / "README.md").write_text("# Books\n")
    path = tmp_path / f"{name}{suffix}"
    compressed = COMPRESS[suffix.lower()]
    path.write_bytes(compressed(PLAIN[name][:1000]) + compressed(PLAIN[name][1000:]))
    assert texts(tmp_path, tmp_path / "cache") == TEXTS
    assert texts(path, tmp_path / "cache") == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_is_one_document_to_the_byte(tmp_path: Path, suffix: str) -> None:
    for name, content in (("a.txt", "a\r\n日本\n"), ("b", "\ufeffb")):
        (tmp_path / f"{name}{suffix}").write_bytes(COMPRESS[suffix](content.encode()))
    assert texts(tmp_path, tmp_path / "cache") == ["a\r\n日本\n", "b"]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *product(COMPRESS, ["cut", "cut by a byte", "flipped", "not compressed"]),
        *product([".gz", ".bz2", ".zst"], ["garbage"]),  # what follows an .xz stream is ignored
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_damaged_file_is_refused_by_name_or_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, suffix: str, damage: str
) -> None:
    whole = COMPRESS[suffix](LINES)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path = tmp_path / "books" / f"{name}{suffix}"
    path.parent.mkdir()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "cut by a byte": whole[:-1],
            "flipped": bytes(flipped),
            "not compressed": LINES,
            "garbage": whole + b"garbage, not a stream",
        }[damage]
    )
    (path.parent / "b.txt").write_text("whole")
    for given in (path, path.parent):
        with pytest.raises(
            InvalidInput, match=rf"{name}\{suffix}' .*cannot be read or decompressed"
        ):
            texts(given, tmp_path / "cache")
    assert texts(path.parent, tmp_path / "cache", skip_invalid=True)[-1] == "whole"
    assert "invalid, the first: " in caplog.text


def test_a_small_file_that_expands_is_streamed(tmp_path: Path) -> None:
    """64 MiB from 64 KiB: neither the whole nor a tenth of it is ever in memory."""
    path, num_bytes = tmp_path / "a.txt.gz", 64 << 20
    path.write_bytes(gzip.compress(b"all work and no play\n" * (num_bytes // 21)))
    (file,) = list_files(path, tmp_path / "cache").files
    tracemalloc.start()
    try:
        num_read = sum(len(block) for block in text.read_text(file))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_read == num_bytes // 21 * 21
    assert peak_bytes < 6 << 20


def test_an_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # a regular file whose first read fails
    with pytest.raises(InvalidInput, match=r"a\.txt' cannot be read: .*expected a whole, readable"):
        texts(tmp_path / "a.txt", tmp_path / "cache")
