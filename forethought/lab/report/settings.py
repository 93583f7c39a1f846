"""The settings shown on the page: those that are not the defaults, and those in which runs differ.

Design: settings are compared as resolved values under their dotted names, so it does not matter whether a
run was configured by a file or on the command line. Keys that this version does not know are shown like
any other, because the page describes the run. The price is that defaults are those of this version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.lab.report.record import RunRecord

# Paths and addresses do not affect a run's behaviour, nor do ports and tokens.
_PLACES = ("run.name", "run.directory", "redis.url", "redis.password_file")
NOT_SET = "not set"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting, its default, and its value in every run, as text; ``differs`` between the runs.

    Example:
        ``SettingRow("learner.steps", "100", ("60", "40"), differs=True)``
    """

    name: str
    default: str
    values: tuple[str, ...]
    differs: bool


def setting_rows(runs: Sequence[RunRecord]) -> list[SettingRow]:
    """Every setting that differs from its default in some run; those in which runs differ come first.

    Runs without a configuration are shown as not set and do not count as differing.
    """
    defaults = _flat(_defaults())
    of_runs = [_flat(run.config) for run in runs]
    names = {name for values in of_runs for name in values if _is_shown(name)}
    rows = [_row(name, defaults, of_runs) for name in sorted(names)]
    changed = [row for row in rows if any(v not in (row.default, NOT_SET) for v in row.values)]
    return sorted(changed, key=lambda row: not row.differs)


def _row(
    name: str, defaults: Mapping[str, str], of_runs: Sequence[Mapping[str, str]]
) -> SettingRow:
    default = defaults.get(name, NOT_SET)
    # A configuration without a key was written by a version that lacked it or used the default.
    values = tuple(values.get(name, default if values else NOT_SET) for values in of_runs)
    known = {value for value, given in zip(values, of_runs, strict=True) if given}
    return SettingRow(name, default, values, differs=len(known) > 1)


def _defaults() -> dict[str, Any]:
    from forethought.config import Settings

    return Settings().model_dump(mode="json")


def _is_shown(name: str) -> bool:
    return name not in _PLACES and not name.startswith("auth.") and not name.endswith("_port")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and values as TOML would show them; lists are one value."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
