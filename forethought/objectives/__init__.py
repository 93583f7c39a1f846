"""Objectives: one file each, found by name. The file name is the registry.

``load("rlp")`` imports :mod:`forethought.objectives.rlp` and takes its only :class:`Objective`;
``load("mypackage.mymodule")`` does the same for somebody else's. Only names loaded at start can be asked
for later, so nothing in a request reaches an import.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forethought.errors import InvalidInput
from forethought.objectives.base import Group, Objective

__all__ = ["Group", "Objective", "load", "names"]

_NOT_OBJECTIVES = ("__init__", "base", "positions")


def names() -> list[str]:
    """The objectives of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem not in _NOT_OBJECTIVES)


def load(name: str, parameters: Mapping[str, Any] | None = None) -> Objective:
    """The objective of a file in this folder, or of a dotted module name, with its parameters.

    Raises:
        InvalidInput: no such module, not exactly one objective in it, or parameters it refuses.
    """
    kind = _find(name)
    try:
        return kind(kind.Config.model_validate(dict(parameters or {})))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        known = ", ".join(kind.Config.model_fields)
        raise InvalidInput(
            f"objective {name!r} refuses its parameters: {faults}; known: {known}"
        ) from error


def _find(name: str) -> type[Objective]:
    module_name = name if "." in name else f"{__name__}.{name}"
    if not all(module_name.split(".")):
        raise InvalidInput(_missing(name))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists and something it imports does not
        raise InvalidInput(_missing(name)) from error
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Objective)
        and value is not Objective
        and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise InvalidInput(f"{module_name} defines {len(kinds)} objectives; expected exactly one")
    return kinds[0]


def _missing(name: str) -> str:
    return (
        f"no objective {name!r}: expected a file of forethought/objectives, or the dotted name of an "
        "importable module"
    )
