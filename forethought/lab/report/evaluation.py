"""The tables of ``eval.json``, at any depth.

Design: a table is a mapping (or list) of splits with numeric values, found by the key ``splits`` at any
depth; a number may have an interval (``x_low`` and ``x_high``, or a mapping of the three). So new metrics
of an evaluation appear on the page without a change here. The price is that they appear under their names
in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forethought.lab.report.facts import NONE
from forethought.lab.report.numbers import number, signed

_VALUES = ("value", "mean", "estimate")
_INTERVALS = (("low", "high"), ("lower", "upper"))
_NAMES = ("name", "split", "label", "checkpoint", "path", "step")


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """Metrics by split, as text; one row per metric, because there are more metrics than splits.

    Example:
        ``EvaluationTable("step-000060", ("easy", "hard"), (("think_accuracy", ("0.91", "0.72")),))``
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[EvaluationTable]:
    """Every table of splits, in file order; tables without numbers are omitted."""
    found = [_table(title, splits) for title, splits in _splits(evaluation, "")]
    return [table for table in found if table.rows]


def _splits(value: Any, title: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _splits(item, _name(item) or f"{title} {index + 1}".strip())
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        if key == "splits" and isinstance(item, Mapping | list):
            yield title, _by_name(item)
        else:
            yield from _splits(item, _name(item) or str(key))


def _by_name(splits: Mapping[str, Any] | list[Any]) -> Mapping[str, Any]:
    if isinstance(splits, Mapping):
        return splits
    return {_name(item) or str(index + 1): item for index, item in enumerate(splits)}


def _name(item: Any) -> str:
    if not isinstance(item, Mapping):
        return ""
    return next((str(item[key]) for key in _NAMES if isinstance(item.get(key), str | int)), "")


def _table(title: str, splits: Mapping[str, Any]) -> EvaluationTable:
    cells = {name: _cells(split) for name, split in splits.items() if isinstance(split, Mapping)}
    metrics = dict.fromkeys(key for of_split in cells.values() for key in of_split)
    rows = tuple(
        (metric, tuple(of_split.get(metric, NONE) for of_split in cells.values()))
        for metric in metrics
    )
    return EvaluationTable(title, tuple(cells), rows)


def _cells(split: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    cells: dict[str, str] = {}
    for key, value in split.items():
        name = prefix + str(key)
        if any(name == f"{of}_{end}" for of in cells for end in ("low", "high")):
            continue  # interval bounds are shown with their value
        low, high = split.get(f"{key}_low"), split.get(f"{key}_high")
        if low is not None and high is not None:
            value = {"value": value, "low": low, "high": high}
        if (text := _cell(value)) is not None:
            cells[name] = text
        elif isinstance(value, Mapping):
            cells |= _cells(value, f"{name} ")
    return cells


def _cell(value: Any) -> str | None:
    """A number, or a number with its interval; None for anything else."""
    if not isinstance(value, Mapping):
        known = number(value)
        return (
            None if known is None else signed(known) if isinstance(value, float) else f"{value:,}"
        )
    middle = next((number(value.get(key)) for key in _VALUES if key in value), None)
    if middle is None:
        return None
    for low_key, high_key in _INTERVALS:
        low, high = number(value.get(low_key)), number(value.get(high_key))
        if low is not None and high is not None:
            return f"{signed(middle)} [{signed(low)}, {signed(high)}]"
    return signed(middle)
