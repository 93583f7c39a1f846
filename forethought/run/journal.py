"""The journal: every consumed batch, so that a run can be audited and replayed from its directory.

    DIR/journal/epoch-0001-batch-000000.zst    up to 64 batches: [batch u32][length u32][zstd frame] records

Design: a batch is appended and flushed to disk before any checkpoint that contains it is written; there
is one file per run epoch and 64 batches. A learner that resumes from an older checkpoint consumes some
batches again under a newer epoch; the record of the newest epoch is the one that counts, and the audit
reads only that. A record that a power cut left half written is skipped: no checkpoint contains it, so
its batch is consumed again. The price is that retention deletes only whole files.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from forethought import wire
from forethought.run.files import flush
from forethought.types import ScoredRollout, attempt_of, original_of

log = logging.getLogger(__name__)

BATCHES_PER_FILE = 64
_HEADER = struct.Struct("<II")  # batch, bytes of the frame that follows
_Place = tuple[Path, int, int]  # file, offset and bytes of a frame
_NAME = re.compile(r"^epoch-(\d+)-batch-(\d+)\.zst$")
_CAUSE = "a power cut leaves such records; they count as not written"


@dataclass(frozen=True, slots=True)
class Audit:
    """Task counts of the surviving history: trained, failed, never consumed, consumed twice.

    ``num_replaced`` of the trained and failed tasks are replacements for other tasks
    (:mod:`trainer.admission.replacement`).

    Example:
        ``Audit(num_admitted=3840, num_trained=3838, num_failed=2, num_lost=0, num_duplicated=0)``
    """

    num_admitted: int
    num_trained: int
    num_failed: int
    num_lost: int
    num_duplicated: int
    num_replaced: int = 0


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One consumed batch.

    Example:
        ``JournalRecord(epoch=1, batch=7, version=8, results=(...))``
    """

    epoch: int
    batch: int
    version: int
    results: tuple[ScoredRollout, ...]


class Journal:
    """Appends consumed batches of one epoch."""

    def __init__(self, directory: Path, epoch: int, keep_batches: int = 0) -> None:
        """``keep_batches`` 0 keeps everything."""
        self._directory, self._epoch, self._keep_batches = directory, epoch, keep_batches
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, batch: int, version: int, results: Sequence[ScoredRollout]) -> None:
        """Append one batch; it is on disk when this returns."""
        body = wire.encode_journal_batch(self._epoch, batch, version, results)
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(body)
        first = batch - batch % BATCHES_PER_FILE
        path = self._directory / f"epoch-{self._epoch:04d}-batch-{first:06d}.zst"
        is_new = not path.exists()
        with path.open("ab") as file:
            file.write(_HEADER.pack(batch, len(frame)) + frame)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            flush(self._directory)  # its name too
        if self._keep_batches:
            self._delete_files(before=batch - self._keep_batches)

    def _delete_files(self, before: int) -> None:
        for path, _, first in _files(self._directory):
            if first + BATCHES_PER_FILE <= before:
                path.unlink()


def read_journal(
    directory: Path, on_damage: Callable[[str], None] = log.warning
) -> Iterator[JournalRecord]:
    """The surviving history in batch order: for every batch, the intact record of its newest epoch.

    ``on_damage`` is called with a sentence for every place that cannot be read.
    """
    places: dict[int, list[_Place]] = {}
    for path, _, first in _files(directory):  # by epoch, so that later records come last
        for batch, offset, num_bytes in _frames(path, first, on_damage):
            places.setdefault(batch, []).append((path, offset, num_bytes))
    for batch in sorted(places):
        for place in reversed(places[batch]):
            record = _read(*place, on_damage)
            if record is not None:
                yield record
                break


def newest_epoch_in(directory: Path) -> int:
    """The newest epoch that has a file in the journal, or 0."""
    return max((epoch for _, epoch, _ in _files(directory)), default=0)


def first_kept_batch(num_batches: int, keep_batches: int) -> int:
    """The first of ``num_batches`` consumed batches still kept by retention."""
    if not keep_batches:
        return 0
    before = num_batches - 1 - keep_batches  # as of the last append
    return max(0, before - before % BATCHES_PER_FILE)


def audit(
    directory: Path,
    num_admitted: int,
    first_task_id: int = 0,
    on_damage: Callable[[str], None] = log.warning,
) -> Audit:
    """Check the task ids of the surviving history against ``first_task_id … num_admitted - 1``.

    Ids outside that range are ignored: a learner that died may have got further than its successor.
    """
    expected = range(first_task_id, num_admitted)
    seen: Counter[int] = Counter()
    num_failed = 0
    for record in read_journal(directory, on_damage):
        for result in record.results:
            if original_of(result.rollout.task.task_id) in expected:
                seen[result.rollout.task.task_id] += 1
                num_failed += result.failure is not None
    return Audit(
        num_admitted=num_admitted,
        num_trained=sum(seen.values()) - num_failed,
        num_failed=num_failed,
        num_lost=sum(task_id not in seen for task_id in expected),
        num_duplicated=sum(count - 1 for count in seen.values()),
        num_replaced=sum(attempt_of(task_id) > 0 for task_id in seen),
    )


def _files(directory: Path) -> list[tuple[Path, int, int]]:
    """Journal files with their epoch and first batch, sorted by them."""
    if not directory.is_dir():
        return []
    matches = ((path, _NAME.match(path.name)) for path in directory.iterdir())
    found = [(path, int(match[1]), int(match[2])) for path, match in matches if match]
    return sorted(found, key=lambda entry: entry[1:])


def _frames(
    path: Path, first: int, on_damage: Callable[[str], None]
) -> Iterator[tuple[int, int, int]]:
    """(batch, offset, length) of complete frames; a partial tail from a killed learner is skipped.

    A header that no learner writes, such as zeros, ends the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            batch, num_bytes = _HEADER.unpack(header)
            offset = file.tell()
            if num_bytes == 0 or not first <= batch < first + BATCHES_PER_FILE:
                at = offset - _HEADER.size
                on_damage(f"the journal cannot be read from byte {at} of {path.name} on: {_CAUSE}")
                return
            if offset + num_bytes > size:
                return
            yield batch, offset, num_bytes
            file.seek(offset + num_bytes)


def _read(
    path: Path, offset: int, num_bytes: int, on_damage: Callable[[str], None]
) -> JournalRecord | None:
    """The record in a frame; None if the frame is damaged."""
    with path.open("rb") as file:
        file.seek(offset)
        frame = file.read(num_bytes)
    try:
        body = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError:
        on_damage(f"the journal cannot be read at byte {offset} of {path.name}: {_CAUSE}")
        return None
    return JournalRecord(*wire.decode_journal_batch(body))
