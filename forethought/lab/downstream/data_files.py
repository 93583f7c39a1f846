"""The rows of a data set's file: JSON lines, JSON, CSV, TSV or Parquet, compressed or not.

Design: the corpus's readers stream one text field of files of any size; a benchmark is small, and all of
its columns are needed to say what a file holds, so it is read whole. The price: memory grows with the file.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from forethought.corpus.reading.compression import SUFFIXES, open_bytes
from forethought.errors import InvalidInput

Row = dict[str, Any]
"""A record by column; of a CSV or TSV file, every value is text."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".ndjson", ".json")
_EXPECTED = ".jsonl, .json, .csv, .tsv or .parquet"


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, in order; at least one.

    Raises:
        InvalidInput: there is no such file, its suffix names no known format, or it holds something else.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidInput(f"data file {str(path)!r} {found}; expected one file: {_EXPECTED}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".parquet":
        rows = _of_parquet(path)
    elif suffix in _DELIMITERS:
        rows = _of_table(_text(path), path, _DELIMITERS[suffix])
    elif suffix in _JSON:
        rows = _of_json(_text(path), path)
    else:
        raise InvalidInput(
            f"data file {str(path)!r} ends in {suffix or 'no suffix'}; expected {_EXPECTED}"
        )
    if not rows:
        raise InvalidInput(f"data file {str(path)!r} holds no questions; expected at least one")
    return rows


def _text(path: Path) -> str:
    with open_bytes(path) as stream:
        content = stream.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"data file {str(path)!r} is not UTF-8 at byte {error.start}; expected UTF-8: convert it, "
            "for example with iconv"
        ) from error


def _of_json(text: str, path: Path) -> list[Row]:
    """One object a line, or one array of objects."""
    if text.lstrip().startswith("["):
        return _objects(_parsed(text, repr(str(path))), path)
    lines = enumerate(text.split("\n"), start=1)
    return _objects(
        [_parsed(line, f"{str(path)!r} line {number}") for number, line in lines if line.strip()],
        path,
    )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"data file {where} is not JSON ({error}); expected one object a line, or an array of objects"
        ) from error


def _objects(values: list[Any], path: Path) -> list[Row]:
    other = next((value for value in values if not isinstance(value, dict)), None)
    if other is not None:
        raise InvalidInput(
            f"data file {str(path)!r} holds a JSON {type(other).__name__}; expected objects, such as "
            '{"question": "..."}'
        )
    return values


def _of_table(text: str, path: Path, delimiter: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise InvalidInput(
            f"data file {str(path)!r} is damaged at line {reader.line_num} ({error}); write it again"
        ) from error
    uneven = next((i for i, row in enumerate(rows, start=1) if None in row), None)
    if uneven is not None:
        raise InvalidInput(
            f"data file {str(path)!r} record {uneven} has more values than the header has columns; "
            "expected one each: quote values that hold the delimiter"
        )
    return rows


def _of_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            rows: list[Row] = table.read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(
            f"data file {str(path)!r} is not a whole, readable Parquet file ({error}); write it again"
        ) from error
    return rows
