"""Models of the hub: which files of a repository a transformers directory needs."""

from __future__ import annotations

import json
from pathlib import Path

from forethought.hub.snapshot import Snapshot, Wanted, fetch
from forethought.hub_id import HubId

_SAFETENSORS, _PICKLED = "*.safetensors", "pytorch_model*.bin"
_OTHERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_IGNORED = ("*/*", "consolidated*")  # other formats of the same weights


def model_folder(path: str | Path, revision: str = "") -> Path:
    """The local folder of a model: the path itself, or that of an id's files, downloaded if need be.

    Raises:
        InvalidInput: as :func:`forethought.hub.snapshot.fetch`; a local path is not checked.
    """
    hub_id = HubId.parse(str(path), revision)
    return Path(path).expanduser() if hub_id is None else fetch_model(hub_id).folder


def fetch_model(hub_id: HubId) -> Snapshot:
    """Configuration, tokenizer and weights of a model: safetensors, and pickled tensors where it has none.

    Raises:
        InvalidInput: as :func:`forethought.hub.snapshot.fetch`.
    """
    snapshot = fetch(hub_id, _wanted(_SAFETENSORS))
    if _has_weights(snapshot.folder):
        return snapshot
    return fetch(snapshot.hub_id, _wanted(_PICKLED))


def _wanted(weights: str) -> Wanted:
    return Wanted("model", (*_OTHERS, weights), _IGNORED, _is_whole)


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file() and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    return any(_holds(folder, kind) for kind in (_SAFETENSORS, _PICKLED))


def _holds(folder: Path, kind: str) -> bool:
    """Whether there are weights of this kind, and every file that an index of them names."""
    if indices := list(folder.glob(f"{kind}.index.json")):
        return any(all((folder / name).is_file() for name in _named(index)) for index in indices)
    return any(file.is_file() for file in folder.glob(kind))


def _named(index: Path) -> set[str]:
    """The files of an index; one that does not exist if the index is damaged."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {f"{index.name} cannot be read"}
