"""Objectives: one file each, found by name. The file name is the registry.

``load("rlp")`` imports :mod:`forethought.objectives.rlp` and takes its only :class:`Objective`;
``load("mypackage.mymodule")`` does the same for a third-party module, and
``load("mine", folder="objectives")`` for a file of a plugin folder. Only names loaded at start can be
requested later, so nothing in a request reaches an import.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from forethought.errors import InvalidInput
from forethought.objectives.parts.base import Group, Imitation, Mode, Objective
from forethought.objectives.parts.plugins import PluginFolder

__all__ = ["Group", "Imitation", "Mode", "Objective", "load", "names"]


def names(folder: str = "") -> list[str]:
    """The objectives that ship with the package, and those of a plugin folder.

    Raises:
        InvalidInput: the folder cannot be used; see :class:`PluginFolder`.
    """
    built_in = sorted(_built_in())
    return built_in + (_plugins(folder).names() if folder else [])


def load(name: str, parameters: Mapping[str, Any] | None = None, folder: str = "") -> Objective:
    """The objective of a file in this package, in a plugin folder, or of a dotted module name.

    Raises:
        InvalidInput: no such module, not exactly one objective in it, parameters it refuses, or a
            plugin that does not import.
    """
    kind = _only_objective(_module(name, folder))
    try:
        return _checked(kind(kind.Config.model_validate(dict(parameters or {}))))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        known = ", ".join(kind.Config.model_fields)
        raise InvalidInput(
            f"objective {name!r} refuses its parameters: {faults}; known: {known}"
        ) from error


def _built_in() -> set[str]:
    return {file.stem for file in Path(__file__).parent.glob("*.py")} - {"__init__"}


def _plugins(folder: str) -> PluginFolder:
    return PluginFolder(Path(folder), _built_in())


def _module(name: str, folder: str) -> ModuleType:
    if folder:
        plugins = _plugins(folder)
        if name in plugins.names():
            return plugins.module(name)
    module_name = name if "." in name else f"{__name__}.{name}"
    if not all(module_name.split(".")):
        raise InvalidInput(_missing(name, folder))
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists and something it imports does not
        raise InvalidInput(_missing(name, folder)) from error


def _only_objective(module: ModuleType) -> type[Objective]:
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Objective)
        and value is not Objective
        and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        where = module.__file__ or module.__name__
        raise InvalidInput(f"{where} defines {len(kinds)} objectives; expected exactly one")
    return kinds[0]


def _checked(objective: Objective) -> Objective:
    """Refuse what an earlier release called ``mode``: ignored, it would train something else."""
    for old in ("reinforces", "written_weight"):
        if hasattr(objective, old):
            raise InvalidInput(
                f"objective {type(objective).__name__} defines {old}, which this release does not read; "
                "expected mode = Mode.REINFORCE, Mode.IMITATE, Mode.WRITE (with thought_weight) or "
                "Mode.NEXT_TOKEN: see forethought/objectives/parts/base.py"
            )
    return objective


def _missing(name: str, folder: str) -> str:
    of_folder = f", a file of {folder}" if folder else ""
    return (
        f"no objective {name!r}: expected a file of forethought/objectives, or the dotted name of an "
        f"importable module{of_folder}; objective.folder=FOLDER adds files of your own"
    )
