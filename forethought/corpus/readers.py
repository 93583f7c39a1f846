"""Records of one path, whatever its format: a stream of (document id, fields).

Design: small custom readers, because those of ``datasets`` alter a corpus: the JSON reader turns a text
such as ``2020-01-01`` into a timestamp, the text reader turns ``\\r\\n`` into ``\\n``, both treat ``[`` in
a file name as a pattern, and none reports the offending line or byte. Files are streamed, so memory does
not grow with their size. The price: a text file is one document only up to ``BLOCK_BYTES``; a longer one is
cut at the last line break (else space, else character) before that size, and every block is a separate
document.

Ids are ``<file name>#<row>``: the row is the block of a text file, the line of a JSON-lines file,
the row of a Parquet file or of a saved dataset, all counted from 0. In a folder the name is the
path relative to it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.errors import InvalidInput

BLOCK_BYTES = 256 << 10
TOKEN_IDS_FIELD = "token_ids"
ENTROPIES_FIELD = "entropies"
_LOG = logging.getLogger(__name__)
_BOM = b"\xef\xbb\xbf"
_SNIFFED_BYTES = 8000  # git's rule: a NUL among the first 8,000 bytes means binary

Record = tuple[str, dict[str, Any]]
"""A document's id and its requested fields."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a record's fields; ``prompt`` "" means no prompt field.

    Example:
        ``Fields(text="text", marks="marks", prompt="question")``
    """

    text: str
    marks: str
    prompt: str = ""

    def wanted(self, present: Collection[str], where: str) -> list[str]:
        """The fields of ``present`` to read; text takes precedence over token ids.

        The ids may be another tokenizer's.

        Raises:
            InvalidInput: neither the text field nor ``token_ids`` is present.
        """
        content = next((name for name in (self.text, TOKEN_IDS_FIELD) if name in present), None)
        if content is None:
            raise InvalidInput(
                f"{where}: got the fields {sorted(present)}, expected {self.text!r} (or "
                f"{TOKEN_IDS_FIELD!r} if it is already tokenised); set the source's text_field"
            )
        annotations = [self.marks, self.prompt]
        if content == TOKEN_IDS_FIELD:  # a text's entropies would be another tokenizer's
            annotations.append(ENTROPIES_FIELD)
        return [content, *(name for name in annotations if name in present)]


@dataclass(slots=True)
class InvalidRecords:
    """What becomes of a record that cannot be read: it is refused, or skipped and counted.

    Example:
        ``InvalidRecords(are_skipped=True).take(InvalidInput("line 3 is not JSON"))``
    """

    are_skipped: bool
    count: int = 0
    first: str = ""

    def take(self, fault: InvalidInput) -> None:
        """Count the record, or raise its fault."""
        if not self.are_skipped:
            raise fault
        self.count += 1
        self.first = self.first or str(fault)


def list_files(path: Path, excluded: Path) -> tuple[Path, ...]:
    """The files a source consists of, sorted: ``path`` itself, or every file below it.

    Names that begin with a dot and the folder ``excluded`` (the cache) are skipped; links to folders are
    not followed.

    Raises:
        InvalidInput: the path does not exist, or is a folder without files.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise InvalidInput(
            f"corpus source {str(path)!r} does not exist; expected a file, a folder or a dataset "
            "written by save_to_disk; names on the Hugging Face hub are not fetched: download it first"
        )
    files = tuple(_walk(path, excluded.resolve()))
    if not files:
        raise InvalidInput(
            f"corpus folder {str(path)!r} holds no files; expected text, .jsonl or .parquet files "
            "(names that begin with a dot are skipped); put some there or give another path"
        )
    return files


def read_records(
    path: Path, files: tuple[Path, ...], fields: Fields, invalid: InvalidRecords
) -> Iterator[Record]:
    """Stream the records of ``path``, which consists of ``files`` (see :func:`list_files`).

    A line that is no record goes to ``invalid``; a file that cannot be read as a whole is refused.

    Raises:
        InvalidInput: a file's content does not match its suffix, invalid UTF-8, missing fields.
    """
    try:
        if path.is_file():
            yield from _read_named_file(path, fields, invalid)
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            yield from _read_saved_dataset(path, fields)
        else:
            yield from _read_folder(path, files, fields, invalid)
    except OSError as error:
        raise InvalidInput(
            f"corpus source {str(path)!r} cannot be read: {error}; expected readable files; "
            "fix their permissions or exclude them"
        ) from error


def _walk(folder: Path, excluded: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(folder):
        here = Path(directory)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and (here / name).resolve() != excluded
        )
        for name in sorted(files):
            if not name.startswith(".") and (here / name).is_file():
                yield here / name


def _read_named_file(path: Path, fields: Fields, invalid: InvalidRecords) -> Iterator[Record]:
    name = _printable(path.name)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        yield from _read_json_lines(path, name, fields, invalid)
    elif suffix == ".parquet":
        yield from _read_parquet(path, name, fields)
    else:
        yield from _read_text(path, name, fields)


def _read_folder(
    folder: Path, files: tuple[Path, ...], fields: Fields, invalid: InvalidRecords
) -> Iterator[Record]:
    num_skipped = 0
    for file in files:
        name = _printable(file.relative_to(folder).as_posix())
        suffix = file.suffix.lower()
        if suffix == ".jsonl":
            yield from _read_json_lines(file, name, fields, invalid)
        elif suffix == ".parquet":
            yield from _read_parquet(file, name, fields)
        elif _is_text(file):
            yield from _read_text(file, name, fields)
        else:
            num_skipped += 1
    if num_skipped:
        _LOG.warning(
            "%s: skipped %d of %d files that are binary, not UTF-8 or not readable",
            folder,
            num_skipped,
            len(files),
        )


def _printable(name: str) -> str:
    """Decode a file name, with replacement characters if it is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


def _is_text(file: Path) -> bool:
    """Whether a file is UTF-8 throughout and has no NUL near its start."""
    try:
        for offset, block in _blocks(file):
            if offset == 0 and b"\0" in block[:_SNIFFED_BYTES]:
                return False
            block.decode("utf-8")
    except (UnicodeDecodeError, OSError):
        return False
    return True


def _read_text(file: Path, name: str, fields: Fields) -> Iterator[Record]:
    for row, (offset, block) in enumerate(_blocks(file)):
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{str(file)!r}: got byte 0x{block[error.start]:02x} at byte offset "
                f"{offset + error.start}, expected UTF-8; convert the file, for example with iconv"
            ) from error
        yield f"{name}#{row}", {fields.text: text.removeprefix("\ufeff") if row == 0 else text}


def _blocks(file: Path) -> Iterator[tuple[int, bytes]]:
    """(byte offset, bytes) of consecutive blocks; never cut inside a valid UTF-8 character."""
    offset, rest = 0, b""
    with file.open("rb") as stream:
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


def _read_json_lines(
    file: Path, name: str, fields: Fields, invalid: InvalidRecords
) -> Iterator[Record]:
    with file.open("rb") as stream:
        for row, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                record = _parse_line(line.removeprefix(_BOM) if row == 0 else line, file, row)
                wanted = fields.wanted(record, f"{str(file)!r} line {row + 1}")
            except InvalidInput as fault:
                invalid.take(fault)
                continue
            yield f"{name}#{row}", {key: record[key] for key in wanted}


def _parse_line(line: bytes, file: Path, row: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{str(file)!r} line {row + 1} is not JSON in UTF-8 ({error}); expected one JSON "
            "object per line; repair or remove the line, or set corpus.skip_invalid=true"
        ) from error
    if not isinstance(record, dict):
        raise InvalidInput(
            f"{str(file)!r} line {row + 1}: got a JSON {type(record).__name__}, expected one object "
            'per line, such as {"text": "..."}; rewrite the file'
        )
    return record


def _read_parquet(file: Path, name: str, fields: Fields) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            columns = fields.wanted(table.schema_arrow.names, repr(str(file)))
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    yield f"{name}#{row}", record
                    row += 1
    except pa.ArrowException as error:
        raise InvalidInput(
            f"{str(file)!r} is not a whole Parquet file ({error}); write it again or exclude it"
        ) from error


def _read_saved_dataset(path: Path, fields: Fields) -> Iterator[Record]:
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # the library may raise anything on a damaged folder
        raise InvalidInput(
            f"{str(path)!r} is not a whole dataset of save_to_disk ({error}); save it again"
        ) from error
    if not isinstance(dataset, Dataset):
        raise InvalidInput(
            f"{str(path)!r} holds the splits {sorted(dataset)}, expected one dataset; give the "
            f"path of one split, such as {str(path / next(iter(dataset)))!r}"
        )
    columns = fields.wanted(dataset.column_names, repr(str(path)))
    for row, record in enumerate(dataset.select_columns(columns).with_format(None)):
        yield f"{_printable(path.name)}#{row}", record
