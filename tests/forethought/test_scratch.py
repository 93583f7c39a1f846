"""Scratch folders: closed, owned by the living, and cleaned up after the dead."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from forethought import scratch
from forethought.scratch import ScratchFolder

_HOLD = """
import sys, time
from pathlib import Path
from forethought.scratch import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1]), "weights")
(folder.path / "policy-0").mkdir()
(folder.path / "policy-0" / "model.safetensors").write_bytes(bytes(1 << 20))
print(folder.path, flush=True)
time.sleep(1000)
"""


def hold(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process with a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed, left = hold(tmp_path)
    living, held = hold(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (left / "policy-0" / "model.safetensors").stat().st_size == 1 << 20
    own = ScratchFolder(tmp_path, "weights")
    try:
        assert sorted(tmp_path.iterdir()) == sorted([held, own.path])
        assert (held / "policy-0" / "model.safetensors").exists()
        assert stat.S_IMODE(own.path.stat().st_mode) == 0o700
    finally:
        own.close()
        living.kill()
        living.communicate()
    assert list(tmp_path.iterdir()) == [held]


def test_two_folders_of_one_process_do_not_remove_each_other(tmp_path: Path) -> None:
    first, second = ScratchFolder(tmp_path, "weights"), ScratchFolder(tmp_path, "weights")
    other = ScratchFolder(tmp_path, "redis")
    assert first.path.is_dir()
    for folder in (first, second, other):
        folder.close()
    assert list(tmp_path.iterdir()) == []


def test_neither_links_nor_other_users_folders_are_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, place = tmp_path / "target", tmp_path / "place"
    target.mkdir()
    place.mkdir()
    (target / "precious").touch()
    (place / "forethought-weights-link").symlink_to(target)
    (place / "forethought-weights-file").touch()
    (place / "forethought-weights-trap").mkdir()
    (place / "forethought-weights-trap" / ".lock").symlink_to(target / "precious")
    foreign = place / "forethought-weights-foreign"
    ScratchFolder(place, "weights").close()
    names = {"forethought-weights-link", "forethought-weights-file", "forethought-weights-trap"}
    assert {path.name for path in place.iterdir()} == names
    foreign.mkdir()
    monkeypatch.setattr(scratch.os, "geteuid", lambda: foreign.stat().st_uid + 1)
    ScratchFolder(place, "weights").close()
    assert foreign.is_dir()
    assert (target / "precious").exists()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    locked = scratch._locked

    def removed_first(folder: Path) -> int | None:
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()
        return locked(folder)

    monkeypatch.setattr(scratch, "_locked", removed_first)
    folder = ScratchFolder(tmp_path, "weights")
    assert [folder.path] == made[1:] == list(tmp_path.iterdir())
    folder.close()
