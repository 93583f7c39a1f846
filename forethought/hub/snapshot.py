"""A repository of the hub at one commit, as a folder of huggingface_hub's cache.

Design: a commit that the cache holds is taken from there without a request, so that only the first process
of a run asks the hub, and the others find what it downloaded. A branch is asked for first, and the cache
is used where the hub does not answer. Errors of any library below become one line. The price: a cache
without huggingface_hub's list of the commit's files is judged by its content (``is_whole``) alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Literal

from forethought.errors import InvalidInput, NotInstalled, one_line
from forethought.hub_id import HubId

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_MAIN = "main"
_WORDS = {
    "model": ("model", "a local folder", ""),
    "dataset": ("data set", "a local file, folder or pattern", " --repo-type dataset"),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder with files of ``hub_id``, whose revision is the commit they belong to.

    Example:
        ``fetch_model(HubId("HuggingFaceTB/SmolLM2-135M")).hub_id.revision``
    """

    hub_id: HubId
    folder: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a repository: patterns of file names, and whether a folder holds enough of them.

    ``choose`` picks the files to download from the names of all, in place of the patterns.

    Example:
        ``Wanted("dataset", ("README.md",), is_whole=lambda folder: True)``
    """

    kind: Literal["model", "dataset"]
    patterns: Sequence[str]
    ignored: Sequence[str] = ()
    is_whole: Callable[[Path], bool] = field(default=lambda folder: True)
    choose: Callable[[Sequence[str]], list[str]] | None = None


def fetch(hub_id: HubId, wanted: Wanted) -> Snapshot:
    """The wanted files at the commit that the id's revision is now, downloaded if the cache lacks any.

    Raises:
        InvalidInput: they are not in the cache, and the hub does not have them or cannot be reached; what
            ``choose`` raises.
        NotInstalled: huggingface_hub is not installed.
    """
    _check_installed(hub_id)
    cached = _cached(hub_id, wanted)
    if cached is not None and hub_id.is_pinned:
        return cached
    try:
        _ask(hub_id, wanted)
        log.info("fetching %s %s from the Hugging Face hub", wanted.kind, hub_id)
        return _download(hub_id, wanted, _names(hub_id, wanted), from_cache=False)
    except InvalidInput:
        raise
    except Exception as error:  # the libraries below may raise anything
        if cached is not None:
            log.log(_level(error), "%s: using the cache, because %s", hub_id, _reason(error))
            return cached
        raise InvalidInput(_refusal(hub_id, wanted, error)) from error


def _check_installed(hub_id: HubId) -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise NotInstalled(
            f"{str(hub_id)!r} does not exist here, and the Hugging Face hub cannot be asked without "
            "huggingface_hub; expected a local path, or pip install huggingface_hub"
        ) from error


def _cached(hub_id: HubId, wanted: Wanted) -> Snapshot | None:
    try:
        found = _download(hub_id, wanted, wanted.patterns, from_cache=True)
    except Exception:  # not there, or not whole
        return None
    return found if wanted.is_whole(found.folder) else None


def _ask(hub_id: HubId, wanted: Wanted) -> None:
    """One short request, because a download without a network is tried for half a minute."""
    from huggingface_hub import HfApi

    HfApi().repo_info(
        hub_id.name,
        repo_type=wanted.kind,
        revision=hub_id.revision or None,
        timeout=_TIMEOUT_S,
    )


def _names(hub_id: HubId, wanted: Wanted) -> Sequence[str]:
    """Patterns of the files to download."""
    from huggingface_hub import HfApi

    if wanted.choose is None:
        return wanted.patterns
    names = HfApi().list_repo_files(
        hub_id.name, repo_type=wanted.kind, revision=hub_id.revision or None
    )
    return [escape(name) for name in wanted.choose(names)]


def _download(hub_id: HubId, wanted: Wanted, patterns: Sequence[str], from_cache: bool) -> Snapshot:
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            hub_id.name,
            repo_type=wanted.kind,
            revision=hub_id.revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=list(wanted.ignored),
            local_files_only=from_cache,
        )
    )
    return Snapshot(HubId(hub_id.name, folder.name), folder)


def _level(error: Exception) -> int:
    """Of a line about a cache that is used; nobody who asked for it needs a warning."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return logging.INFO if isinstance(error, OfflineModeIsEnabled) else logging.WARNING


def _refusal(hub_id: HubId, wanted: Wanted, error: Exception) -> str:
    from huggingface_hub import constants

    noun, places, option = _WORDS[wanted.kind]
    revision = f" --revision {hub_id.revision}" if hub_id.revision else ""
    return (
        f"{noun} {hub_id.name!r} does not exist here, and as an id on the Hugging Face hub (revision "
        f"{hub_id.revision or _MAIN}) it is not in the cache {constants.HF_HUB_CACHE}, and "
        f"{_reason(error)}; expected {places}, or `hf download {hub_id.name}{option}{revision}` where "
        "there is a network, and its cache here (HF_HOME)"
    )


def _reason(error: Exception) -> str:
    """Why the hub gave nothing."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "it is gated: accept its terms on huggingface.co, then `hf auth login` or set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return "the hub has none, or a private one: `hf auth login` or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return "the hub has the name, but not this revision"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so nothing is downloaded"
        case _:
            return f"it cannot be downloaded ({type(error).__name__}: {one_line(error)})"
