"""One configured source as a random-access table of documents.

Design: whatever the format, a source is streamed once through the same checks into one Arrow file
under ``cache_dir`` (columns ``id``, ``text``, ``token_ids``, ``marks``; exactly one of ``text`` and
``token_ids`` is set), keyed by what was read and how: the path as given, name, format, size and times of
every file, the fields, and whether invalid records are skipped. Everything after that is independent of
formats and uses no memory. The price is a second, decompressed copy of the text on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.reading.fields import ENTROPIES_FIELD, TOKEN_IDS_FIELD, Fields
from forethought.corpus.reading.listing import Listing, SourceFile
from forethought.corpus.reading.records import read_records
from forethought.corpus.reading.report import ReadingReport
from forethought.corpus.reading.source_files import list_source
from forethought.errors import InvalidInput

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT_VERSION = 4  # of the cached table: increment it when reading changes
_MAX_TOKEN_ID = 2**31 - 1
_LOG = logging.getLogger(__name__)


def open_source(source: SourceSection, cache_dir: Path) -> Dataset:
    """Read ``source`` (or load it from the cache) as a ``datasets.Dataset``.

    Columns: ``id`` (file name # row), ``text`` or, for an already tokenised source, ``token_ids``, and
    ``marks``: positions marked for prediction, as character offsets into ``text`` or indices into
    ``token_ids``; empty if the source has none. If a record has both contents the text is read, since the
    ids may be another tokenizer's. ``entropies`` of token ids are in nats, one per token, empty if the
    source has none. A record's prompt is the first ``prompt_chars`` characters of ``text``. The source's
    template makes ``text``, and what its ``strip_pattern`` matches is removed from it; marks are offsets
    into the text before that. Empty documents are skipped and counted, and invalid ones too with the
    source's ``skip_invalid``.

    Raises:
        InvalidInput: a missing path, a data set of the hub that is not available, no documents, a wrong
            field name or type, invalid UTF-8.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError

    path, listing = list_source(source, cache_dir)
    reading = _reading(path, listing, Fields.of(source), source.skip_invalid, cache_dir)
    features = Features(
        {
            "id": Value("string"),
            "text": Value("large_string"),
            "token_ids": List(Value("int32")),
            "marks": List(Value("int64")),
            "prompt_chars": Value("int64"),
            "entropies": List(Value("float32")),
        }
    )
    try:
        documents = Dataset.from_generator(
            _documents,
            features=features,
            cache_dir=str(cache_dir),
            gen_kwargs={"reading": reading},
            fingerprint=reading.fingerprint,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise error.__cause__ from None
        raise
    _log(ReadingReport.load(reading.report_file), source.label)
    return documents


def iterate_texts(section: CorpusSection, cache_dir: Path) -> Iterator[str]:
    """Every text of every source, once and in order, for ``train_tokenizer``.

    Raises:
        InvalidInput: as :func:`open_source`; also for an already tokenised source without text.
    """
    for source in section.resolved_sources():
        for row in open_source(source, cache_dir).select_columns(["id", "text"]):
            if row["text"] is None:
                raise InvalidInput(
                    f"{row['id']} of corpus source {source.name!r} holds token ids, expected text "
                    "to train a tokenizer on; set model.path to the model whose tokenizer made those ids"
                )
            yield row["text"]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A source's files and how they are read, in one value, since ``datasets`` takes a list for shards."""

    path: Path
    listing: Listing
    fields: Fields
    skip_invalid: bool
    fingerprint: str
    report_file: Path


def _reading(
    path: Path, listing: Listing, fields: Fields, skip_invalid: bool, cache_dir: Path
) -> _Reading:
    """With a fingerprint taken before reading, which changes when any file or the way of reading does."""
    try:
        files = [_described(file) for file in listing.files]
    except OSError as error:
        raise InvalidInput(
            f"corpus source {str(path)!r} changed while it was listed: {error}; expected files that stay; "
            "start again"
        ) from error
    described = [
        _FORMAT_VERSION, str(path.absolute()), list(asdict(fields).values()), skip_invalid, files,
        listing.left_out,
    ]  # fmt: skip
    ascii_only = json.dumps(described)  # a name that is not UTF-8 is escaped too
    fingerprint = hashlib.sha256(ascii_only.encode()).hexdigest()[:32]
    report_file = cache_dir / f"documents-{fingerprint}.json"
    return _Reading(path, listing, fields, skip_invalid, fingerprint, report_file)


def _described(file: SourceFile) -> list[object]:
    """What identifies the content of a file and the way in which it is read."""
    stats = [(str(part.resolve()), part.stat()) for part in file.parts]
    parts = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats]
    return [str(file.path.absolute()), file.name, file.format_name, parts]


def _documents(reading: _Reading) -> Iterator[dict[str, Any]]:
    """The validated documents of a source; raising here keeps an unusable source out of the cache."""
    report = ReadingReport(reading.skip_invalid)
    for name, reason in reading.listing.left_out:
        report.leave_out(name, reason)
    for file in reading.listing.files:
        for document_id, record in read_records(file, reading.fields, report):
            try:
                document = _checked(document_id, record, reading.fields)
            except InvalidInput as fault:
                report.take_invalid(fault)
                continue
            if document is None:
                report.num_empty += 1
            else:
                report.num_documents += 1
                yield document
    report.check_usable(reading.path)
    report.save(reading.report_file)


def _log(report: ReadingReport, name: str) -> None:
    """Say what was read and what was not; ``up`` prints both (:mod:`forethought.cli.notices`)."""
    _LOG.info("%s: %s", name, report.summary)
    for warning in report.warnings():
        _LOG.warning("%s: %s", name, warning)


def _checked(document_id: str, record: dict[str, Any], fields: Fields) -> dict[str, Any] | None:
    """One row of the table, or None for an empty document."""
    content = fields.content(record, document_id)
    if content is None:
        return None
    tokenised = not fields.template and fields.text not in record
    if tokenised:
        _check_integers(content, _MAX_TOKEN_ID, f"{document_id}: {TOKEN_IDS_FIELD}")
    else:
        _check_text(content, document_id, "text" if fields.template else fields.text)
    if not (content if tokenised else content.strip()):
        return None
    marks = record.get(fields.marks)
    marks = [] if marks is None else marks
    _check_integers(marks, len(content) - 1, f"{document_id}: {fields.marks}")
    if fields.strip:
        _check_strippable(tokenised, document_id)
        content, marks = fields.stripped(content, marks)
        if not content.strip():
            return None
    prompt = _prompt(record, fields, tokenised, document_id)
    return {
        "id": document_id,
        "text": None if tokenised else prompt + content,
        "token_ids": content if tokenised else None,
        "marks": [len(prompt) + mark for mark in marks],
        "prompt_chars": len(prompt),
        "entropies": _entropies(record, document_id) if tokenised else [],
    }


def _check_strippable(tokenised: bool, document_id: str) -> None:
    if tokenised:
        raise InvalidInput(
            f"{document_id}: got {TOKEN_IDS_FIELD!r} together with a strip_pattern, expected text; provide "
            "the text, or leave the source's strip_pattern empty"
        )


def _entropies(record: dict[str, Any], document_id: str) -> Sequence[float]:
    values = record.get(ENTROPIES_FIELD)
    if values is None or len(values) == 0:
        return []
    num_tokens = len(record[TOKEN_IDS_FIELD])
    if len(values) != num_tokens or not all(_is_entropy(value) for value in values):
        raise InvalidInput(
            f"{document_id}: got {len(values)} {ENTROPIES_FIELD} for {num_tokens} tokens, expected one "
            "finite number of at least 0 per token; run forethought curate again"
        )
    return list(values)


def _is_entropy(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _prompt(record: dict[str, Any], fields: Fields, tokenised: bool, document_id: str) -> str:
    prompt = record.get(fields.prompt) if fields.prompt else None
    if prompt is None:
        return ""
    if tokenised:
        raise InvalidInput(
            f"{document_id}: got {fields.prompt!r} together with {TOKEN_IDS_FIELD!r}, expected text for "
            "both; provide the text, or leave the source's prompt_field empty"
        )
    _check_text(prompt, document_id, fields.prompt)
    return str(prompt)


def _check_text(text: object, document_id: str, field: str) -> None:
    if not isinstance(text, str):
        raise InvalidInput(
            f"{document_id}: got {field}={text!r:.80} ({type(text).__name__}), expected a string; "
            "set another text_field or repair the record"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{document_id}: {field} holds the lone surrogate U+{ord(text[error.start]):04X} at "
            f"character {error.start}, expected Unicode text; write the complete surrogate pair"
        ) from error


def _check_integers(values: object, largest: int, what: str) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InvalidInput(
            f"{what}: got {values!r:.80}, expected a list of integers; repair the record"
        )
    for value in values:
        if type(value) is not int or not 0 <= value <= largest:
            raise InvalidInput(
                f"{what}: got {value!r:.80}, expected integers from 0 to {largest}; "
                "repair the record"
            )
