"""Which files a local path stands for, and the format of each.

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
from glob import iglob
from pathlib import Path

from forethought.corpus.reading.compression import SUFFIXES
from forethought.errors import InvalidInput

_TEXT, _SAVED = "text", "saved dataset"
_RUN = "the directory of a run"
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
        ``list_files(Path("books"), Path("runs/first/cache")).files[0].format_name``
    """

    files: tuple[SourceFile, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def list_files(path: Path, excluded: Path) -> Listing:
    """The files at ``path``: itself, those below it, or those that match it as a pattern (``books/*.gz``).

    The folder ``excluded`` (the cache) is not one of them.

    Raises:
        InvalidInput: the path does not exist, cannot be listed, or holds no files.
    """
    try:
        if path.is_file() or _is_saved_dataset(path):
            return Listing((_source_file(path, path.name, is_given=True),))
        left_out: dict[str, str] = {}
        root, entries = _start_of(path)
        if not path.is_dir():
            entries = _without_internals(root, entries, excluded.resolve(), left_out)
        found = dict.fromkeys(_walk(root, entries, excluded.resolve(), left_out))
    except OSError as error:
        raise InvalidInput(
            f"corpus source {str(path)!r} cannot be listed: {error}; expected readable folders; fix their "
            "permissions or move them away"
        ) from error
    files = _without_documentation(list(found), left_out)
    if not files:
        reasons = "".join(f"; left out {name}: {reason}" for name, reason in left_out.items())
        raise InvalidInput(
            f"corpus folder {str(path)!r} holds no files; expected text, .jsonl or .parquet files "
            f"(names that begin with a dot are skipped{reasons:.500}); put some there or give another path"
        )
    return Listing(tuple(files), tuple(left_out.items()))


def _start_of(path: Path) -> tuple[Path, list[Path]]:
    """A folder and its entries; for a pattern the folder before its first wildcard, and the matches."""
    if path.is_dir():
        return path, _entries(path)
    if not path.exists() and (matches := sorted(map(Path, iglob(str(path), recursive=True)))):
        return next(folder for folder in path.parents if folder.is_dir()), matches
    found = "is neither a file nor a folder" if path.exists() else "does not exist"
    raise InvalidInput(
        f"corpus source {str(path)!r} {found}; expected a file, a folder, a pattern such as books/*.gz or "
        "a dataset written by save_to_disk, or the id of a data set on the Hugging Face hub (owner/name)"
    )


def _without_internals(
    root: Path, matches: list[Path], excluded: Path, left_out: dict[str, str]
) -> list[Path]:
    """The matches of a pattern that are not inside the cache, another run or a saved dataset."""
    kept = []
    for match in matches:
        folders = [root / parent for parent in match.relative_to(root).parents if parent.name]
        run = next((folder for folder in folders if _is_run(folder)), None)
        if run is not None:
            left_out[_source_file(run, run.relative_to(root).as_posix(), is_given=False).name] = (
                _RUN
            )
        elif not any(
            folder.resolve() == excluded or _is_saved_dataset(folder) for folder in folders
        ):
            kept.append(match)
    return kept


def _is_run(folder: Path) -> bool:
    from forethought.run.directory import RunDirectory  # loads numpy

    return RunDirectory(folder).is_begun


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
    root: Path, entries: list[Path], excluded: Path, left_out: dict[str, str]
) -> Iterator[SourceFile]:
    """The files among ``entries`` and below them."""
    for entry in entries:
        file = _source_file(entry, entry.relative_to(root).as_posix(), is_given=False)
        if reason := _reason_to_leave_out(entry):
            left_out[file.name] = reason
        elif entry.is_file() or _is_saved_dataset(entry):
            yield file
        elif entry.resolve() != excluded:
            yield from _walk(root, _entries(entry), excluded, left_out)


def _entries(folder: Path) -> list[Path]:
    """Files before folders, each sorted by name."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entries, key=lambda entry: (entry.is_dir(), entry.name))


def _reason_to_leave_out(entry: Path) -> str:
    """Why an entry of a folder is not read; empty if it is."""
    if entry.is_file():
        return "empty" if entry.stat().st_size == 0 else ""
    if not entry.is_dir():
        return "a broken link" if entry.is_symlink() else "not a regular file"
    if entry.is_symlink():
        return "a link to a folder, not followed"
    if not os.access(entry, os.R_OK | os.X_OK):
        return "a folder that cannot be listed"
    return _RUN if _is_run(entry) else ""


def _without_documentation(files: list[SourceFile], left_out: dict[str, str]) -> list[SourceFile]:
    if all(file.format_name == _TEXT for file in files):
        return files
    kept = []
    for file in files:
        is_documentation = file.path.name.partition(".")[0].upper() in _DOCUMENTATION
        if is_documentation and file.format_name == _TEXT:
            left_out[file.name] = "documentation beside records"
        else:
            kept.append(file)
    return kept
