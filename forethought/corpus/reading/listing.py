"""Which files a source consists of, and the format of each.

Design: the format follows from the file's name alone, the same for a file that is given as the path and for
one found in a folder, and case does not matter. A folder written by ``save_to_disk`` is one file of its own
format, wherever it is. What is not read is listed with its reason, except names that begin with a dot and
the cache. The price: a file whose suffix says nothing is read as text, and refused or left out
if it is none.

A README or a license beside files of records describes them and is left out; in a folder of plain text it
is a text like the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forethought.corpus.reading.compression import SUFFIXES
from forethought.errors import InvalidInput

_TEXT, _SAVED = "text", "saved dataset"
_FORMATS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".csv": "CSV",
    ".tsv": "TSV",
}
_DOCUMENTATION = frozenset({"README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CITATION"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source, or the folder of a saved dataset. ``name`` begins its documents' ids.

    ``is_given`` if it is the source's path itself, not found in a folder.

    Example:
        ``SourceFile(Path("books/a/b.jsonl.gz"), "a/b.jsonl.gz", "JSON lines", is_given=False)``
    """

    path: Path
    name: str
    format_name: str
    is_given: bool

    @property
    def parts(self) -> tuple[Path, ...]:
        """The file itself, or every file of a saved dataset."""
        if self.format_name != _SAVED:
            return (self.path,)
        return tuple(sorted(path for path in self.path.rglob("*") if path.is_file()))


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source in the order in which they are read, and what is left out: (name, reason).

    Example:
        ``list_source(Path("books"), Path("runs/first/cache")).files[0].format_name``
    """

    files: tuple[SourceFile, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def list_source(path: Path, excluded: Path) -> Listing:
    """The files at ``path``: itself, or those below it, except the folder ``excluded`` (the cache).

    Raises:
        InvalidInput: the path does not exist, cannot be listed, or is a folder without files.
    """
    if path.is_file() or _is_saved_dataset(path):
        return Listing((_source_file(path, path.name, is_given=True),))
    if not path.is_dir():
        found = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise InvalidInput(
            f"corpus source {str(path)!r} {found}; expected a file, a folder or a dataset "
            "written by save_to_disk; names on the Hugging Face hub are not fetched: download it first"
        )
    left_out: list[tuple[str, str]] = []
    found_files = list(_walk(path, path, excluded.resolve(), left_out))
    files = _without_documentation(found_files, left_out)
    if not files:
        reasons = "".join(f"; left out {name}: {reason}" for name, reason in left_out[:3])
        raise InvalidInput(
            f"corpus folder {str(path)!r} holds no files; expected text, .jsonl or .parquet files "
            f"(names that begin with a dot are skipped{reasons}); put some there or give another path"
        )
    return Listing(tuple(files), tuple(left_out))


def _source_file(path: Path, name: str, *, is_given: bool) -> SourceFile:
    # A name that is not UTF-8 gets replacement characters.
    printable = os.fsencode(name).decode("utf-8", "replace")
    return SourceFile(path, printable, _format_of(path), is_given)


def _format_of(path: Path) -> str:
    if path.is_dir():
        return _SAVED
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        suffix = path.with_suffix("").suffix.lower()
    return _FORMATS.get(suffix, _TEXT)


def _is_saved_dataset(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder; one with ``dataset_info.json`` alone is a download."""
    is_dataset = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return is_dataset or (path / "dataset_dict.json").is_file()


def _walk(
    root: Path, folder: Path, excluded: Path, left_out: list[tuple[str, str]]
) -> Iterator[SourceFile]:
    """The files below ``folder``: its own first, then those of its subfolders, each sorted by name."""
    for entry in _entries(root, folder, left_out):
        if entry.is_dir() and _is_plain_folder(entry):
            if entry.resolve() != excluded:
                yield from _walk(root, entry, excluded, left_out)
            continue
        file = _source_file(entry, entry.relative_to(root).as_posix(), is_given=False)
        if reason := _reason_to_leave_out(entry):
            left_out.append((file.name, reason))
        else:
            yield file


def _entries(root: Path, folder: Path, left_out: list[tuple[str, str]]) -> list[Path]:
    """Files before folders, each sorted by name."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        left_out.append((folder.relative_to(root).as_posix(), "a folder that cannot be listed"))
        return []
    return sorted(entries, key=lambda entry: (entry.is_dir(), entry.name))


def _is_plain_folder(entry: Path) -> bool:
    from forethought.run.directory import RunDirectory  # loads numpy

    is_other = entry.is_symlink() or _is_saved_dataset(entry) or RunDirectory(entry).is_begun
    return not is_other


def _reason_to_leave_out(entry: Path) -> str:
    """Why an entry that is no plain folder is not read; empty if it is."""
    if entry.is_file():
        return "empty" if entry.stat().st_size == 0 else ""
    if entry.is_dir():
        if entry.is_symlink():
            return "a link to a folder, not followed"
        return "" if _is_saved_dataset(entry) else "the directory of a run"
    return "a broken link" if entry.is_symlink() else "not a regular file"


def _without_documentation(
    files: list[SourceFile], left_out: list[tuple[str, str]]
) -> list[SourceFile]:
    if all(file.format_name == _TEXT for file in files):
        return files
    kept = []
    for file in files:
        is_documentation = file.path.name.partition(".")[0].upper() in _DOCUMENTATION
        if is_documentation and file.format_name == _TEXT:
            left_out.append((file.name, "documentation beside records"))
        else:
            kept.append(file)
    return kept
