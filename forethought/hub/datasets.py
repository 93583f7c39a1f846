"""Data sets of the hub: which files of a repository a split and a subset need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from forethought.errors import InvalidInput
from forethought.hub.snapshot import Snapshot, Wanted, fetch
from forethought.hub.splits import README, DatasetCard, Selection
from forethought.hub_id import HubId

Choose = Callable[[Sequence[str]], list[str]]
"""The selected ones of a repository's files."""


def fetch_dataset(hub_id: HubId, selection: Selection) -> Snapshot:
    """The README and the selected files of a data set.

    Raises:
        InvalidInput: as :func:`forethought.hub.snapshot.fetch`, or it has no such split or subset, or the
            README declares several subsets and the selection names none.
    """
    snapshot = _with_readme(hub_id)
    card = DatasetCard.read(snapshot.folder)
    choose = partial(_chosen, hub_id.name, selection, card)
    choose([])  # several subsets are found before anything is asked for
    patterns = (README, *selection.download_patterns(card))
    wanted = Wanted("dataset", patterns, is_whole=partial(_holds_some, choose), choose=choose)
    try:
        return fetch(snapshot.hub_id, wanted)
    except InvalidInput:
        choose(_files(snapshot.folder))  # says which splits the cache has, if it has any
        raise


def _with_readme(hub_id: HubId) -> Snapshot:
    """The repository with its README, if the cache or the hub has one."""
    try:
        return fetch(hub_id, Wanted("dataset", (README,)))
    except InvalidInput:
        return fetch(hub_id, Wanted("dataset", ()))  # a cache of chosen files


def _chosen(name: str, selection: Selection, card: DatasetCard, files: Sequence[str]) -> list[str]:
    data = [file for file in files if file != README and not file.startswith(".")]
    try:
        return selection.chosen(data, card)
    except InvalidInput as fault:
        raise InvalidInput(f"data set {name!r}: {fault}") from fault


def _holds_some(choose: Choose, folder: Path) -> bool:
    """Whether a folder holds a selected file."""
    try:
        return bool(choose(_files(folder)))
    except InvalidInput:
        return False


def _files(folder: Path) -> list[str]:
    """The files of a folder, without those whose content is gone."""
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
