"""What was read of a source and what was not, and why.

Design: the report is kept beside the cached documents, so that a start that loads them says the same as the
one that read them. Files are left out for a reason that many may share (``not UTF-8 text``); the report
counts them by reason and names the first of each. The price: the others' names are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from forethought.errors import InvalidInput
from forethought.run.files import read_object, write_whole


class HoldsNoRecords(InvalidInput):
    """A whole file that holds no records of the source: left out beside others, refused on its own.

    Raised before the first record of the file.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class ReadingReport:
    """Files read by format, files left out by reason (number, first name), and skipped documents.

    Example:
        ``ReadingReport(files_read={"text": 2}, left_out={"empty": (1, "a.txt")}, num_documents=2)``
    """

    skip_invalid: bool = False
    files_read: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    num_documents: int = 0
    num_empty: int = 0
    num_invalid: int = 0
    first_invalid: str = ""

    def add_file(self, format_name: str) -> None:
        """Count a file that was read."""
        self.files_read[format_name] = self.files_read.get(format_name, 0) + 1

    def leave_out(self, name: str, reason: str) -> None:
        """Count a file or folder that is not read."""
        count, first = self.left_out.get(reason, (0, name))
        self.left_out[reason] = (count + 1, first)

    def take_invalid(self, fault: InvalidInput) -> None:
        """Count a record, or the rest of a file, that cannot be read.

        Raises:
            InvalidInput: the fault, unless invalid records are skipped.
        """
        if not self.skip_invalid:
            raise fault
        self.num_invalid += 1
        self.first_invalid = self.first_invalid or str(fault)

    @property
    def summary(self) -> str:
        """What was read: ``1,200 documents of 3 files (2 JSON lines, 1 text)``."""
        formats = ", ".join(f"{count:,} {name}" for name, count in sorted(self.files_read.items()))
        num_files = _counted(sum(self.files_read.values()), "file")
        return f"{_counted(self.num_documents, 'document')} of {num_files} ({formats})"

    def warnings(self) -> Iterator[str]:
        """What was not read; nothing if everything was."""
        if self.left_out:
            yield f"left out {describe_left_out(self.left_out)}"
        num_records = self.num_documents + self.num_empty + self.num_invalid
        if self.num_empty:
            yield f"skipped {self.num_empty} of {num_records} documents: empty"
        if self.num_invalid:
            yield (
                f"skipped {self.num_invalid} of {num_records} documents: invalid, the first: "
                f"{self.first_invalid}"
            )

    def check_usable(self, path: Path) -> None:
        """Refuse a source of which nothing is left.

        Raises:
            InvalidInput: no document is usable.
        """
        if self.num_documents:
            return
        num_read = self.num_empty + self.num_invalid
        reason = f" or invalid, such as {self.first_invalid}" if self.num_invalid else ""
        files = f"; left out {describe_left_out(self.left_out)}" if self.left_out else ""
        raise InvalidInput(
            f"corpus source {str(path)!r}: got {num_read} documents, all of them empty{reason}{files}; "
            "expected at least one with text; check the path and the source's text_field"
        )

    def save(self, file: Path) -> None:
        """Write the report to a file."""
        write_whole(file, json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> ReadingReport:
        """The report that :meth:`save` wrote."""
        return cls(**read_object(file))


def describe_left_out(left_out: dict[str, tuple[int, str]]) -> str:
    """For people: ``3 files: empty (a.txt and 1 more), not UTF-8 text (image.png)``."""
    parts = (
        f"{reason} ({first}{f' and {count - 1} more' if count > 1 else ''})"
        for reason, (count, first) in left_out.items()
    )
    num_files = sum(count for count, _ in left_out.values())
    return f"{_counted(num_files, 'file')}: {', '.join(parts)}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
