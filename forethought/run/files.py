"""Files that outlive a power cut: written whole, flushed to disk, and read without trusting them.

Design: a rename is atomic but not durable, and may reach the disk before the data does; so every file is
flushed before its rename, and its folder after it. What is there nevertheless (a file of an older version,
a disk that lied) is read as absent, never as a traceback. The price is a flush per file and folder, which
is why lines that are only read by people (metrics) are flushed with the checkpoint and not one by one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Replace a file's text; after a power cut the file holds the old text or the new one.

    Processes may write the same file, as those that share a cache do: the last one's text stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    rename_whole(partial, path)


def rename_whole(partial: Path, path: Path) -> None:
    """Give a finished file or folder its name, once its content is on disk."""
    for entry in (partial, *(partial.rglob("*") if partial.is_dir() else ())):
        flush(entry)
    partial.rename(path)
    flush(path.parent)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a folder to ``target``, which does not exist until all of it is there."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    rename_whole(partial, target)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def grant_usual_mode(folder: Path) -> None:
    """Give the files of a folder the mode of a file opened now; safetensors writes them as 0600.

    A file is made to see that mode: reading the umask means to change it, for all threads.
    """
    usual = folder / ".mode"
    usual.touch()
    mode = usual.stat().st_mode & 0o777
    usual.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is absent or holds none."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def step_line(line: bytes) -> dict[str, Any] | None:
    """A line of ``metrics.jsonl``: a JSON object with its step; None if it is damaged."""
    try:
        read = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    is_step = isinstance(read, dict) and isinstance(read.get("step"), int)
    return read if is_step else None
