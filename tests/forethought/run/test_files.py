"""Files written whole: processes may write the same one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forethought.run import files


def test_processes_may_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As runs that share a cache do: one process writes it between the other's write and rename."""
    file, rename = tmp_path / "counts.json", files.rename_whole

    def rename_late(partial: Path, path: Path) -> None:
        monkeypatch.setattr(files, "rename_whole", rename)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        files.write_whole(path, "theirs")
        rename(partial, path)

    monkeypatch.setattr(files, "rename_whole", rename_late)
    files.write_whole(file, "ours")
    assert file.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [file]
