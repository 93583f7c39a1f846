"""Records of JSON files: one object per line, one array of objects, or one object over many lines.

Design: the JSON reader of ``datasets`` turns a text such as ``2020-01-01`` into a timestamp and does not
report the offending line. Lines and arrays are streamed, so memory depends on the longest record, which is
bounded: a small compressed file may hold a line of many gigabytes. A ``.json`` file whose first value is no
object with a text is a configuration, not a corpus, and is left out of a folder. The price: after a syntax
error in an array the rest of its file is not read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, BinaryIO

from forethought.corpus.reading.compression import open_bytes
from forethought.corpus.reading.fields import Fields
from forethought.corpus.reading.listing import SourceFile
from forethought.corpus.reading.report import HoldsNoRecords, ReadingReport
from forethought.errors import InvalidInput

MAX_RECORD_BYTES = 64 << 20
_CHUNK_CHARACTERS = 1 << 16
_BOM = b"\xef\xbb\xbf"
_BETWEEN = re.compile(r"[\s,]*")

Row = tuple[int, dict[str, Any]]
"""A record's number, the line in JSON lines, and its requested fields."""


def read_json_lines(file: SourceFile, fields: Fields, report: ReadingReport) -> Iterator[Row]:
    """The records of a ``.jsonl`` file; blank lines count as rows.

    Raises:
        InvalidInput: the file cannot be read, or a line is no record and invalid ones are not skipped.
    """
    with open_bytes(file.path) as stream:
        yield from _lines(stream, file, fields, report)


def read_json(file: SourceFile, fields: Fields, report: ReadingReport) -> Iterator[Row]:
    """The records of a ``.json`` file, whichever of the three forms it has.

    Raises:
        HoldsNoRecords: its first value is no record and invalid ones are not skipped.
        InvalidInput: as :func:`read_json_lines`.
    """
    rows = _of_any_form(file, fields, report)
    try:
        first = next(rows, None)
    except _NoRecord as error:
        raise HoldsNoRecords(str(error), f"JSON without the field {fields.missing}") from error
    if first is not None:
        yield first
        yield from rows


class _NoRecord(InvalidInput):
    """Whole JSON that is no object, or one with neither text nor token ids."""


def _of_any_form(file: SourceFile, fields: Fields, report: ReadingReport) -> Iterator[Row]:
    with open_bytes(file.path) as stream:
        lines = (line.removeprefix(_BOM).strip() for line in _bounded_lines(stream))
        first_line = next(filter(None, lines), b"")
    with open_bytes(file.path) as stream:
        if first_line.startswith(b"[") or _is_cut(first_line):
            yield from _values(stream, file, fields, report)
        else:
            yield from _lines(stream, file, fields, report)


def _is_cut(line: bytes) -> bool:
    """Whether a line is the beginning of a value that goes on in the next one."""
    try:
        json.loads(line)
    except JSONDecodeError as error:
        return error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        pass
    return False


def _lines(
    stream: BinaryIO, file: SourceFile, fields: Fields, report: ReadingReport
) -> Iterator[Row]:
    for row, line in enumerate(_bounded_lines(stream)):
        if not line.strip():
            continue
        where = f"{str(file.path)!r} line {row + 1}"
        try:
            record = _parse_line(line.removeprefix(_BOM) if row == 0 else line, where)
            yield row, _requested(record, fields, where)
        except InvalidInput as fault:
            report.take_invalid(fault)


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines; one that is too long is cut and the rest of it skipped, so that it is no JSON."""
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        yield line
        while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_RECORD_BYTES + 1)


def _parse_line(line: bytes, where: str) -> object:
    if len(line) > MAX_RECORD_BYTES:
        raise _too_long(where)
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{where} is not JSON in UTF-8 ({error}); expected one JSON "
            "object per line; repair or remove the line, or set corpus.skip_invalid=true"
        ) from error


def _too_long(where: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: got a record of more than {MAX_RECORD_BYTES >> 20} MiB, or JSON that never ends; "
        "expected shorter ones: split its text, or set corpus.skip_invalid=true"
    )


def _requested(record: object, fields: Fields, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise _NoRecord(
            f"{where}: got a JSON {type(record).__name__}, expected one object "
            'per line, such as {"text": "..."}, or an array of objects in a .json file; rewrite the file'
        )
    try:
        return {key: record[key] for key in fields.wanted(record, where)}
    except InvalidInput as fault:
        raise _NoRecord(str(fault)) from fault


def _values(
    stream: BinaryIO, file: SourceFile, fields: Fields, report: ReadingReport
) -> Iterator[Row]:
    where = repr(str(file.path))
    row = 0
    try:
        for row, value in enumerate(_parsed_values(stream)):
            try:
                yield row, _requested(value, fields, f"{where} record {row}")
            except InvalidInput as fault:
                report.take_invalid(fault)
    except _TooLong:
        report.take_invalid(_too_long(f"{where} after record {row}"))
    except (JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        report.take_invalid(
            InvalidInput(
                f"{where} is not JSON in UTF-8 after record {row} ({error}); expected an array of objects, "
                "or one object per line; repair it, or set corpus.skip_invalid=true"
            )
        )


class _TooLong(Exception):
    """A record exceeds ``MAX_RECORD_BYTES``."""


def _parsed_values(stream: BinaryIO) -> Iterator[object]:
    """The elements of an array, or the values of a file that is none, as they arrive."""
    decoder = json.JSONDecoder()
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        buffer = text.read(_CHUNK_CHARACTERS).lstrip()
        is_array = buffer.startswith("[")
        start = int(is_array)
        while True:
            start += len(_BETWEEN.match(buffer, start)[0])  # type: ignore[index]  # it always matches
            try:
                value, start = decoder.raw_decode(buffer, start)
            except JSONDecodeError:
                more = text.read(max(_CHUNK_CHARACTERS, len(buffer) - start))
                if not more and buffer[start:].strip() == ("]" if is_array else ""):
                    return
                if not more:
                    raise
                if len(buffer) - start > MAX_RECORD_BYTES:
                    raise _TooLong from None
                buffer, start = buffer[start:] + more, 0
            else:
                yield value
