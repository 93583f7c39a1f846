"""Third-party objectives in a folder: every ``*.py`` in it is one, named by its stem.

Design: the folder becomes a synthetic package, so that Python's import machinery caches, compiles and
resolves imports between plugins (``from . import _shared``; names that begin with an underscore are not
objectives). Its code runs in the learner and in every reward replica with their full privileges: a folder
is trusted like the program itself, and is read only at startup.
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
        InvalidInput: the folder does not exist, or a file in it has an invalid or reserved name.
    """

    def __init__(self, folder: Path, taken: Collection[str]) -> None:
        self._folder = folder.expanduser().resolve()
        self._names = _names(self._folder, taken)

    def names(self) -> list[str]:
        """The names of its objectives."""
        return self._names

    def module(self, name: str) -> ModuleType:
        """The module of one of :meth:`names`, imported once per process.

        Raises:
            InvalidInput: the import fails.
        """
        try:
            return importlib.import_module(f"{self._package()}.{name}")
        except Exception as error:  # a third-party module may raise anything
            raise InvalidInput(
                f"objective {self._folder / name}.py does not import: {type(error).__name__}: "
                f"{error}; fix it, or remove it from objective.folder"
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
            f"objective.folder {folder} is not a folder; expected one with a Python file per objective"
        )
    names = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    for name in names:
        if not name.isidentifier():
            raise InvalidInput(
                f"objective {folder / name}.py has an invalid name; expected letters, digits and "
                "underscores: rename it"
            )
        if name in taken:
            raise InvalidInput(
                f"objective {folder / name}.py has the name of a built-in one; expected a different "
                "name: rename it"
            )
    return names
