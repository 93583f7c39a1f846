"""Records of tables: Parquet, Arrow, CSV and datasets written by ``save_to_disk``.

Design: columns are read in batches, and only those that are requested. A CSV file whose header has neither
field is left out of a folder, as a ``.json`` file is; Parquet and Arrow files are written for training, so
that a missing column is an error. The price: every value of a CSV file is text, so it has no marks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from forethought.corpus.reading.compression import SUFFIXES, open_bytes
from forethought.corpus.reading.fields import Fields
from forethought.corpus.reading.json_records import MAX_RECORD_BYTES
from forethought.corpus.reading.listing import SourceFile
from forethought.corpus.reading.report import HoldsNoRecords, ReadingReport
from forethought.errors import InvalidInput

_BATCH_ROWS = 256
_DELIMITERS = {"CSV": ",", "TSV": "\t"}


def read_parquet(file: SourceFile, fields: Fields) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file.

    Raises:
        InvalidInput: it is damaged or compressed, or has neither column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_not_compressed(file)
    try:
        with pq.ParquetFile(file.path) as table:
            columns = fields.wanted(table.schema_arrow.names, repr(str(file.path)))
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, "Parquet file", error) from error


def read_arrow(file: SourceFile, fields: Fields) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file, in the stream format (as ``datasets`` writes it) or the file format.

    Raises:
        InvalidInput: as :func:`read_parquet`.
    """
    import pyarrow as pa

    _check_not_compressed(file)
    try:
        with pa.memory_map(str(file.path)) as mapped:
            for batch in _arrow_batches(mapped):
                columns = fields.wanted(batch.schema.names, repr(str(file.path)))
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from batch.select(columns).slice(start, _BATCH_ROWS).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, "Arrow file", error) from error


def _arrow_batches(mapped: Any) -> Iterator[Any]:
    import pyarrow as pa

    try:
        opened = pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        yield from pa.ipc.open_stream(mapped)
    else:
        yield from (opened.get_batch(i) for i in range(opened.num_record_batches))


def read_saved_dataset(file: SourceFile, fields: Fields) -> Iterator[dict[str, Any]]:
    """The rows of a dataset that ``save_to_disk`` wrote.

    Raises:
        InvalidInput: it is damaged, holds splits, or has neither column.
    """
    from datasets import Dataset, load_from_disk

    path = file.path
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # the library may raise anything on a damaged folder
        raise _damaged(file, "dataset of save_to_disk", error) from error
    if not isinstance(dataset, Dataset):
        raise InvalidInput(
            f"{str(path)!r} holds the splits {sorted(dataset)}, expected one dataset; give the "
            f"path of one split, such as {str(path / next(iter(dataset)))!r}"
        )
    columns = fields.wanted(dataset.column_names, repr(str(path)))
    yield from dataset.select_columns(columns).with_format(None)


def read_csv(
    file: SourceFile, fields: Fields, report: ReadingReport
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbered rows of a CSV or TSV file with a header.

    Raises:
        HoldsNoRecords: its header has neither column.
        InvalidInput: it is damaged or not UTF-8, or a row is invalid and such rows are not skipped.
    """
    csv.field_size_limit(
        MAX_RECORD_BYTES
    )  # of the process; the library's 128 KiB is a short document
    with (
        open_bytes(file.path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text,
    ):
        rows = csv.DictReader(text, delimiter=_DELIMITERS[file.format_name])
        try:
            columns = _csv_columns(file, fields, rows.fieldnames or ())
            for number, row in enumerate(rows):
                if None not in row:
                    yield number, {column: row[column] for column in columns}
                else:
                    report.take_invalid(_too_many_values(file, number))
        except (csv.Error, UnicodeDecodeError) as error:
            raise _damaged(file, f"{file.format_name} file in UTF-8", error) from error


def _too_many_values(file: SourceFile, number: int) -> InvalidInput:
    return InvalidInput(
        f"{str(file.path)!r} row {number}: got more values than the header has columns, expected one each; "
        "quote values with a delimiter in them, or set corpus.skip_invalid=true"
    )


def _csv_columns(file: SourceFile, fields: Fields, header: Any) -> list[str]:
    try:
        return fields.wanted(header, repr(str(file.path)))
    except InvalidInput as fault:
        reason = f"{file.format_name} without the column {fields.missing}"
        raise HoldsNoRecords(str(fault), reason) from fault


def _check_not_compressed(file: SourceFile) -> None:
    suffix = file.path.suffix.lower()
    if suffix in SUFFIXES:
        raise InvalidInput(
            f"{str(file.path)!r}: got {file.format_name} inside {suffix}, expected the plain file, which "
            "compresses its columns itself; decompress it"
        )


def _damaged(file: SourceFile, kind: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{str(file.path)!r} is not a whole, readable {kind} ({error}); write it again or exclude it"
    )
