"""Folders for what one process needs while it runs, which the next process removes if it was killed.

Design: every process makes a folder of its own, with a name that cannot be foreseen and closed to other
users, and locks a file in it; making the next one in the same place first removes those of its user
that no living process has locked. The kernel drops the lock however a process ends, so processes may share
the place, and a container that restarts finds none of its memory volume taken by the one before. The price:
what a killed process left stays until the next one starts there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_LOCK = ".lock"
_MAX_TRIES = 10


class ScratchFolder:
    """A new folder in ``place``, of mode 0700, until :meth:`close` or the end of the process.

    Example:
        ``ScratchFolder(Path("/dev/shm"), "weights").path``

    ``kind`` is part of its name: only folders of the same kind are cleaned up.

    Raises:
        OSError: ``place`` cannot be written to, or does not lock files.

    """

    def __init__(self, place: Path, kind: str) -> None:
        prefix = f"forethought-{kind}-"
        _remove_abandoned(place, prefix)
        for _ in range(_MAX_TRIES):  # another process may remove it before it is locked
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            lock = _locked(self.path)
            if lock is not None:
                self._lock = lock
                return
            shutil.rmtree(self.path, ignore_errors=True)
        raise OSError(f"no file in {place} can be locked; expected a file system that knows flock")

    def close(self) -> None:
        """Remove the folder; call it once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(place: Path, prefix: str) -> None:
    """Remove this user's folders that no living process holds."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(FileNotFoundError):  # removed by another process that starts
            status = folder.lstat()
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            lock = _locked(folder) if is_ours else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """The descriptor of the folder's locked file; None if another process has locked or removed it."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(folder / _LOCK, flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed between opening and locking.
        if os.fstat(lock).st_ino == (folder / _LOCK).stat().st_ino:
            return lock
    except OSError:
        pass
    os.close(lock)
    return None
