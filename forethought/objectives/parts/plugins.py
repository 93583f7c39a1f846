"""Objectives of one's own, in a folder: every ``*.py`` in it is one, named by its stem.

Design: the folder becomes a package without files of its own, so that Python's import machinery caches,
compiles and resolves imports between plugins (``from . import _shared``; names that begin with an
underscore are no objectives). Its code runs in the learner and in every reward replica with all that
they may do: a folder is trusted like the program itself, and is read at start only.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from forethought.errors import InvalidInput


class PluginFolder:
    """A folder of objectives, checked against the names of the built-in ones.

    Example:
        ``PluginFolder(Path("/objectives"), {"rlp", "ntp"}).names()``

    Raises:
        InvalidInput: there is no such folder, or a file in it cannot be named.
    """

    def __init__(self, folder: Path, taken: Collection[str]) -> None:
        self._folder = folder.expanduser().resolve()
        self._names = _names(self._folder, taken)

    def names(self) -> list[str]:
        """The stems of its files."""
        return self._names

    def module(self, name: str) -> ModuleType:
        """The module of one of :meth:`names`, imported once per process.

        Raises:
            InvalidInput: it does not import.
        """
        try:
            return importlib.import_module(f"{self._package()}.{name}")
        except Exception as error:  # whatever somebody else's module does when it is run
            raise InvalidInput(
                f"objective {self._folder / name}.py does not import: {type(error).__name__}: "
                f"{error}; correct it, or take it out of objective.folder"
            ) from error

    def _package(self) -> str:
        digest = hashlib.sha256(str(self._folder).encode()).hexdigest()[:12]
        name = f"forethought_objectives_{digest}"
        if name not in sys.modules:
            package = ModuleType(name, "The plugin folder of objective.folder.")
            package.__path__ = [str(self._folder)]
            sys.modules[name] = package
        return name


def _names(folder: Path, taken: Collection[str]) -> list[str]:
    if not folder.is_dir():
        raise InvalidInput(
            f"objective.folder {folder} is no folder; expected one with a Python file per objective"
        )
    names = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    for name in names:
        if not name.isidentifier():
            raise InvalidInput(
                f"objective {folder / name}.py cannot be named; expected letters, digits and "
                "underscores: rename it"
            )
        if name in taken:
            raise InvalidInput(
                f"objective {folder / name}.py has the name of a built-in one; expected a name of its "
                "own: rename it"
            )
    return names
