"""The conditions shared by all checkpoints of an evaluation: objective, prompt, sampling, corpus.

Design: everything comes from the resolved configuration of the first run that is given, and the request's
overrides take precedence. So evaluating a run needs no configuration, and the prompt is the one the model
was trained with. Training text is not held-out text: a ``heldout`` file next to the run's corpus is read
if there is one, otherwise the run's own corpus, which the report states. The price: one run's
configuration also determines how models from elsewhere are evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forethought import objectives
from forethought.config import Settings, load_settings
from forethought.config.sections import CorpusSection, SourceSection
from forethought.errors import InvalidInput
from forethought.hub import HubId
from forethought.lab.evaluation.text import Noise
from forethought.objectives import Objective
from forethought.run.checkpoints import Checkpoint
from forethought.run.cost import Unit
from forethought.run.pinning import pinned_corpus

HELDOUT = "heldout"


@dataclass(frozen=True, slots=True)
class Overrides:
    """Settings that override the run's; None or empty keeps the run's value.

    Example:
        ``Overrides(corpus="heldout.jsonl", group_size=16, prompt="v0")``
    """

    corpus: str = ""
    split: str = ""
    subset: str = ""
    text_field: str = ""
    marks_field: str = ""
    marks_pattern: str = ""
    template: str = ""
    strip_pattern: str = ""
    window_tokens: int | None = None
    group_size: int | None = None
    max_thought_tokens: int | None = None
    temperature: float | None = None
    prompt: str = ""
    think_open: str = ""
    think_close: str = ""
    add_think_tokens: bool = False
    bos: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Settings with overrides applied, the objective that prompts and grades, and their origin.

    Example:
        ``conditions(checkpoints, Overrides(group_size=16)).settings.sampling.group_size == 16``
    """

    settings: Settings
    objective: Objective
    origin: str
    corpus_note: str


def conditions(checkpoints: Sequence[Checkpoint], overrides: Overrides) -> Conditions:
    """The conditions for these checkpoints.

    Raises:
        InvalidInput: no corpus is known or available, the run's configuration cannot be read, or an
            override is invalid.
    """
    run = next((c.run for c in checkpoints if c.run and c.run.config.is_file()), None)
    path = run.config if run else None
    if path is not None and not path.read_bytes().strip():
        raise InvalidInput(
            f"{path} is empty (a power cut leaves such a file), so the run's prompt and corpus are not "
            "known; expected its resolved configuration: resume the run, which writes it, or restore it"
        )
    settings = load_settings(path, _override_strings(overrides), environment={})
    corpus, note = _corpus(settings.corpus, overrides)
    origin = str(path) if path else "the defaults: no checkpoint is in a run directory"
    section = settings.objective
    trained_with = objectives.load(section.name, section.parameters, section.folder)
    return Conditions(
        settings.model_copy(update={"corpus": pinned_corpus(corpus)}),
        _objective(trained_with, overrides),
        origin,
        note,
    )


def _override_strings(overrides: Overrides) -> list[str]:
    """The overrides as ``section.key=value`` strings."""
    given: dict[str, Any] = {
        "corpus.window_tokens": overrides.window_tokens,
        "sampling.group_size": overrides.group_size,
        "sampling.max_thought_tokens": overrides.max_thought_tokens,
        "sampling.temperature": overrides.temperature,
        "model.think_open": _quoted(overrides.think_open),
        "model.think_close": _quoted(overrides.think_close),
        "model.bos": overrides.bos,
        "model.add_think_tokens": "true" if overrides.add_think_tokens else "",
    }
    return [f"{key}={value}" for key, value in given.items() if value not in (None, "")]


def _quoted(text: str) -> str:
    """A text as it is, spaces and line breaks included."""
    return text and json.dumps(text, ensure_ascii=False)


def _objective(trained_with: Objective, overrides: Overrides) -> Objective:
    """RPT if one of its prompts is given; else the run's objective, or RLP if that has no thoughts."""
    if overrides.prompt:
        return objectives.load("rpt", {"prompt": overrides.prompt})
    return trained_with if trained_with.thinks else objectives.load("rlp")


def _corpus(section: CorpusSection, overrides: Overrides) -> tuple[CorpusSection, str]:
    """The corpus to read, and a note on whether it is held out."""
    if overrides.corpus:
        source = _overridden(SourceSection(path=overrides.corpus), overrides)
        return _with_sources(
            (source,), section
        ), "as given; not checked against the models' training text"
    sources = section.resolved_sources()
    if not sources:
        raise InvalidInput(
            "no corpus: no checkpoint is in a run directory; expected --corpus FILE_OR_FOLDER"
        )
    if overrides.split:
        read = tuple(_overridden(source, overrides) for source in sources)
        return _with_sources(read, section), f"the split {overrides.split!r} of the run's corpus"
    heldout_paths = [_heldout_of(source) for source in sources]
    read = tuple(
        _overridden(source, overrides).model_copy(update={"path": str(heldout or source.path)})
        for source, heldout in zip(sources, heldout_paths, strict=True)
    )
    if all(heldout_paths):
        return _with_sources(read, section), f"the {HELDOUT} text next to the run's corpus"
    return _with_sources(
        read, section
    ), "THE RUN'S OWN TRAINING TEXT, not held out; pass --corpus or --split"


def _with_sources(sources: tuple[SourceSection, ...], section: CorpusSection) -> CorpusSection:
    return section.model_copy(update={"path": "", "sources": sources})


def _overridden(source: SourceSection, overrides: Overrides) -> SourceSection:
    """A source with the overrides of what is read; a template replaces a text field, and the reverse."""
    names = (
        "split",
        "subset",
        "text_field",
        "marks_field",
        "marks_pattern",
        "template",
        "strip_pattern",
    )
    given = {name: value for name in names if (value := getattr(overrides, name))}
    replaced = {"text_field": "text"} if overrides.template else {}
    replaced |= {"template": ""} if overrides.text_field else {}
    try:
        return SourceSection.model_validate(source.model_dump() | replaced | given)
    except ValidationError as error:
        raise InvalidInput(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _heldout_of(source: SourceSection) -> Path | None:
    if HubId.parse(source.path):
        return None
    path = Path(source.path).expanduser()
    heldout = path.with_name(HELDOUT + path.suffix)
    return heldout if heldout != path and heldout.exists() else None


Progress = Callable[[str, int, int], None]
"""Called with a stage, its finished items and its total."""


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """An eval request. ``is_series``: the checkpoints are those of one run, and laws are fitted.

    Example:
        ``EvalRequest(tuple(series(Path("runs/rpt"))), Overrides(), is_series=True)``
    """

    checkpoints: tuple[Checkpoint, ...]
    overrides: Overrides = field(default_factory=Overrides)
    is_series: bool = False
    proxy: Path | None = None
    num_positions: int = 512
    num_documents: int = 512
    k_list: tuple[int, ...] = ()
    noise: Noise = field(default_factory=Noise)
    unit: Unit = "flops"
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    max_cache_bytes: int = 4_000_000_000
