"""What is the same for every checkpoint of an evaluation: objective, prompt, sampling, corpus.

Design: everything is taken from the configuration of the first run that is named, as the run resolved it,
and an order's own wishes win. So evaluating a run needs no configuration, and the prompt is the one the
model learned with. Training text is not held-out text: where a ``heldout`` file lies beside the run's
corpus that is read, else the run's own, and the report says so. The price: a run's own configuration
decides how models from elsewhere are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethought import objectives
from forethought.config import Settings, load_settings
from forethought.config.sections import CorpusSection, SourceSection
from forethought.errors import InvalidInput
from forethought.lab.evaluation.text import Noise
from forethought.objectives import Objective
from forethought.run.checkpoints import Checkpoint
from forethought.run.cost import Unit

HELDOUT = "heldout"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What an evaluation asks for beside its checkpoints; None or empty: as the run has it.

    Example:
        ``Overrides(corpus="heldout.jsonl", group_size=16, prompt="v0")``
    """

    corpus: str = ""
    text_field: str = ""
    marks_field: str = ""
    window_tokens: int | None = None
    group_size: int | None = None
    max_thought_tokens: int | None = None
    temperature: float | None = None
    prompt: str = ""
    think_open: str = ""
    think_close: str = ""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Settings with the overrides in them, the objective that prompts and grades, and where they come from.

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
        InvalidInput: no corpus is known, the run's configuration cannot be read, or a wish is refused.
    """
    run = next((c.run for c in checkpoints if c.run and c.run.config.is_file()), None)
    path = run.config if run else None
    settings = load_settings(path, _words(overrides), environment={})
    corpus, note = _corpus(settings.corpus, overrides)
    origin = str(path) if path else "the defaults: no checkpoint lies in a run directory"
    section = settings.objective
    learned_with = objectives.load(section.name, section.parameters, section.folder)
    return Conditions(
        settings.model_copy(update={"corpus": corpus}),
        _objective(learned_with, overrides),
        origin,
        note,
    )


def _words(overrides: Overrides) -> list[str]:
    """The wishes as the overrides that they are."""
    given: dict[str, Any] = {
        "corpus.window_tokens": overrides.window_tokens,
        "sampling.group_size": overrides.group_size,
        "sampling.max_thought_tokens": overrides.max_thought_tokens,
        "sampling.temperature": overrides.temperature,
        "model.think_open": overrides.think_open,
        "model.think_close": overrides.think_close,
    }
    return [f"{key}={value}" for key, value in given.items() if value not in (None, "")]


def _objective(learned_with: Objective, overrides: Overrides) -> Objective:
    """RPT where its prompt is named, else the run's objective, or RLP where that does not think."""
    if overrides.prompt:
        return objectives.load("rpt", {"prompt": overrides.prompt})
    return learned_with if learned_with.thinks else objectives.load("rlp")


def _corpus(section: CorpusSection, overrides: Overrides) -> tuple[CorpusSection, str]:
    """What is read, and in words how held-out it is."""
    fields = {"text_field": overrides.text_field, "marks_field": overrides.marks_field}
    given = {name: value for name, value in fields.items() if value}
    if overrides.corpus:
        source = SourceSection(path=overrides.corpus).model_copy(update=given)
        return _of(
            (source,), section
        ), "as given; whether the models learned from it is not checked"
    sources = section.resolved_sources()
    if not sources:
        raise InvalidInput(
            "no corpus: no checkpoint lies in a run directory; expected --corpus FILE_OR_FOLDER"
        )
    beside = [_beside(Path(source.path).expanduser()) for source in sources]
    read = tuple(
        source.model_copy(update={**given, "path": str(heldout or source.path)})
        for source, heldout in zip(sources, beside, strict=True)
    )
    if all(beside):
        return _of(read, section), f"the {HELDOUT} text beside the run's corpus"
    return _of(read, section), "THE RUN'S OWN TRAINING TEXT, not held out; give --corpus"


def _of(sources: tuple[SourceSection, ...], section: CorpusSection) -> CorpusSection:
    return section.model_copy(update={"path": "", "sources": sources})


def _beside(path: Path) -> Path | None:
    heldout = path.with_name(HELDOUT + path.suffix)
    return heldout if heldout != path and heldout.exists() else None


Progress = Callable[[str, int, int], None]
"""Told of a stage, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to evaluate, and how. ``is_series``: the checkpoints are those of one run, and laws are fitted.

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
