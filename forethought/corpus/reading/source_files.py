"""The files of a configured source: local ones or a data set's of the hub, of its split and subset.

Design: a data set of the hub becomes a folder first, and a split is a selection among a folder's files, so
that both mean the same for a folder that was downloaded by hand. The price: a split that is a part of one
file (``train[:10%]``) cannot be named.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from forethought.config.sections import SourceSection
from forethought.corpus.reading.listing import Listing, list_files
from forethought.errors import InvalidInput
from forethought.hub import DatasetCard, HubId, Selection, fetch_dataset

_OTHER = "of another split or subset"


def list_source(source: SourceSection, excluded: Path) -> tuple[Path, Listing]:
    """The path of a source, which is a folder for a data set of the hub, and the files to read.

    The data set is downloaded if need be. The folder ``excluded`` (the cache) is left out.

    Raises:
        InvalidInput: the path cannot be listed (:func:`list_files`), the data set is not available, or
            there is no file of the split and subset.
    """
    hub_id = HubId.parse(source.path, source.revision)
    selection = Selection(source.split, source.subset, prefers_train=hub_id is not None)
    if hub_id is not None:
        path = fetch_dataset(hub_id, selection).folder
        return path, _selected(list_files(path, excluded), path, selection)
    path = Path(source.path).expanduser()
    if source.split and (path / "dataset_dict.json").is_file():  # save_to_disk wrote several splits
        return path / source.split, list_files(path / source.split, excluded)
    return path, _selected(list_files(path, excluded), path, selection)


def _selected(listing: Listing, path: Path, selection: Selection) -> Listing:
    if selection.is_everything:
        return listing
    names = [file.name for file in listing.files]
    try:
        chosen = set(selection.chosen(names, DatasetCard.read(path)))
    except InvalidInput as fault:
        raise InvalidInput(f"corpus source {str(path)!r}: {fault}") from fault
    unnamed = () if selection.split else names  # what was asked for needs no word
    others = tuple((name, _OTHER) for name in unnamed if name not in chosen)
    files = tuple(file for file in listing.files if file.name in chosen)
    return replace(listing, files=files, left_out=(*listing.left_out, *others))
