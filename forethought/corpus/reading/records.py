"""Records of one source, whatever the formats of its files: a stream of (document id, fields).

Design: small custom readers, because those of ``datasets`` alter a corpus (:mod:`.text`,
:mod:`.json_records`), treat ``[`` in a file name as a pattern, and do not report the offending line or
byte. Files are streamed, so memory does not grow with their size. A file is read in one way, wherever it
is; only what becomes of one that holds no records differs: it is left out of a folder and refused on its
own. The price: a folder of records with one damaged file is refused, unless invalid records are skipped.

Ids are ``<file name>#<row>``: the row is the block of a text file, the line of a JSON-lines file, the
element of a JSON array, the row of a table or of a saved dataset, all counted from 0. In a folder the name
is the path relative to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forethought.corpus.reading.fields import Fields, Record
from forethought.corpus.reading.json_records import read_json, read_json_lines
from forethought.corpus.reading.listing import SourceFile
from forethought.corpus.reading.report import HoldsNoRecords, ReadingReport
from forethought.corpus.reading.tables import read_arrow, read_csv, read_parquet, read_saved_dataset
from forethought.corpus.reading.text import read_text
from forethought.errors import InvalidInput


def read_records(file: SourceFile, fields: Fields, report: ReadingReport) -> Iterator[Record]:
    """Stream the records of a file; ``report`` counts it, what is invalid in it, or that it is left out.

    Raises:
        InvalidInput: its content does not match its suffix, invalid UTF-8, missing fields, and neither
            invalid records are skipped nor the file is left out.
    """
    try:
        for row, record in _rows(file, fields, report):
            yield f"{file.name}#{row}", record
    except HoldsNoRecords as fault:
        if file.is_given:
            raise
        report.leave_out(file.name, fault.reason)
        return
    except InvalidInput as fault:
        report.take_invalid(fault)  # what follows in the file is lost
    report.add_file(file.format_name)


def _rows(
    file: SourceFile, fields: Fields, report: ReadingReport
) -> Iterator[tuple[int, dict[str, Any]]]:
    match file.format_name:
        case "JSON lines":
            return read_json_lines(file, fields, report)
        case "JSON":
            return read_json(file, fields, report)
        case "CSV" | "TSV":
            return read_csv(file, fields, report)
        case "Parquet":
            return enumerate(read_parquet(file, fields))
        case "Arrow":
            return enumerate(read_arrow(file, fields))
        case "saved dataset":
            return enumerate(read_saved_dataset(file, fields))
        case _:
            return enumerate({fields.text: text} for text in _texts(file, fields))


def _texts(file: SourceFile, fields: Fields) -> Iterator[str]:
    """The blocks of plain text, which is one column.

    Raises:
        HoldsNoRecords: the text is made of other columns.
    """
    if set(fields.columns) != {fields.text}:
        raise HoldsNoRecords(
            f"{str(file.path)!r}: got plain text, which has no columns {fields.missing}; expected records: "
            "give a .jsonl or .parquet file, or leave the source's template empty",
            f"plain text without the columns {fields.missing}",
        )
    return read_text(file)
