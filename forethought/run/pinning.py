"""The commits of the models and data sets of the hub that a run uses, the same in all its processes.

Design: what settings name on the hub is downloaded and its revision replaced by the commit, which the run's
resolved configuration records. A run that has trained stays with its commits, whatever its branches are
now; so does a start without a revision, and what `up` passes to the processes it starts. The price: to
follow a branch, a new run directory is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from forethought.config import Settings
from forethought.config.loading import read_toml
from forethought.config.sections import CorpusSection, ModelSection, SourceSection
from forethought.errors import InvalidInput
from forethought.hub import HubId, Selection, Snapshot, fetch_dataset, fetch_model
from forethought.run.directory import RunDirectory

_MODEL, _DATASET = "model", "dataset"

Commits = Mapping[tuple[str, str], str]
"""The commit of every (kind, name) that a run uses."""

_Section = TypeVar("_Section", ModelSection, CorpusSection, SourceSection)


def pinned(settings: Settings) -> Settings:
    """The settings of a run with a commit as the revision of everything on the hub, all of it downloaded.

    Raises:
        InvalidInput: something is not available (:func:`forethought.hub.snapshot.fetch`), or the run was
            started from another commit of the model.
    """
    directory = RunDirectory(settings.run.directory)
    commits = _recorded(directory)
    has_trained = directory.latest_checkpoint() is not None
    if has_trained:
        _check_base(settings.model, commits, directory)
    model = _pinned_model(settings.model, commits, has_trained)
    corpus = pinned_corpus(settings.corpus, commits, has_trained)
    return settings.model_copy(update={"model": model, "corpus": corpus})


def pinned_corpus(
    section: CorpusSection, commits: Commits | None = None, has_trained: bool = False
) -> CorpusSection:
    """A corpus with a commit as the revision of every data set on the hub, all of it downloaded.

    Raises:
        InvalidInput: a data set is not available.
    """
    known = commits or {}
    sources = tuple(_pinned_source(source, known, has_trained) for source in section.sources)
    section = section.model_copy(update={"sources": sources})
    if not section.path:
        return section
    of_path = _pinned_source(section.of_path, known, has_trained)
    return section.model_copy(update={"path": of_path.path, "revision": of_path.revision})


def pinned_path(path: str) -> str:
    """A path of a model; one of the hub with its commit (``owner/name@commit``), downloaded.

    Raises:
        InvalidInput: the model is not available.
    """
    hub_id = HubId.parse(path)
    return path if hub_id is None else str(fetch_model(hub_id).hub_id)


def _pinned_model(section: ModelSection, commits: Commits, has_trained: bool) -> ModelSection:
    hub_id = HubId.parse(section.path, section.revision)
    if hub_id is None:
        return section
    return _at(section, fetch_model(_known(hub_id, _MODEL, commits, has_trained)))


def _pinned_source(section: SourceSection, commits: Commits, has_trained: bool) -> SourceSection:
    hub_id = HubId.parse(section.path, section.revision)
    if hub_id is None:
        return section
    selection = Selection(section.split, section.subset, prefers_train=True)
    return _at(section, fetch_dataset(_known(hub_id, _DATASET, commits, has_trained), selection))


def _at(section: _Section, snapshot: Snapshot) -> _Section:
    hub_id = snapshot.hub_id
    return section.model_copy(update={"path": hub_id.name, "revision": hub_id.revision})


def _known(hub_id: HubId, kind: str, commits: Commits, has_trained: bool) -> HubId:
    """The id at the commit that the run uses, unless another one may be asked for."""
    may_move = hub_id.is_pinned or (hub_id.revision and not has_trained)
    commit = None if may_move else commits.get((kind, hub_id.name))
    return HubId(hub_id.name, commit) if commit else hub_id


def _check_base(section: ModelSection, commits: Commits, directory: RunDirectory) -> None:
    hub_id = HubId.parse(section.path, section.revision)
    if hub_id is None or not hub_id.is_pinned:
        return
    commit = commits.get((_MODEL, hub_id.name), hub_id.revision)
    if commit != hub_id.revision:
        raise InvalidInput(
            f"the run in {directory.root} was started from {hub_id.name} at {commit}, got model.revision "
            f"{hub_id.revision}; expected the same commit: leave model.revision empty, or start a new run "
            "with another run.directory"
        )


def _recorded(directory: RunDirectory) -> Commits:
    """What a run's configuration records; that of `up`, if no learner has written its own."""
    commits: dict[tuple[str, str], str] = {}
    of_warmup = RunDirectory(directory.warmup / "run").config  # a run after one names its result
    for file in (directory.up_config, of_warmup, directory.config):
        with suppress(InvalidInput):  # none, or damaged by a power cut
            for kind, table in _named(read_toml(file)):
                hub_id = HubId(str(table.get("path", "")), str(table.get("revision", "")))
                if hub_id.is_pinned:
                    commits[kind, hub_id.name] = hub_id.revision
    return commits


def _named(tables: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every table of a configuration that names a model or a data set, with its kind."""
    yield _MODEL, tables.get("model", {})
    corpus = tables.get("corpus", {})
    yield _DATASET, corpus
    yield from ((_DATASET, source) for source in corpus.get("sources", ()))
