"""The plan of a comparison: bases, arms, seeds and stages, read from one TOML file.

    [settings]    for every run: the sections of a run's configuration
    [[bases]]     models to start from; one with ``settings`` is first trained from its ``model``
    [[arms]]      how the bases are trained; an arm without settings is the base itself
    [[stages]]    stages run after each arm, in order: SFT, RLVR
    [evaluation]  how all of them are measured
    [[downstream]]  benchmarks that all of them are evaluated on, by lm-evaluation-harness

Design: settings remain the nested tables of a run's configuration, because an arm is simply a run; each
is validated by the same :class:`Settings` before anything starts. ``{corpus}`` in a string expands to the
folder of the corpus that ``demo_corpus`` writes. The price of having no loops or conditions: a grid over
a parameter is written out as arms.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from forethought.config.sections import (
    Folder,
    LocalPath,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Settings,
    TextSection,
)
from forethought.errors import InvalidInput

Tables = dict[str, dict[str, Any]]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
DEMO_MODEL = "demo"
"""The ``model`` of the base that ships with the package."""


class BaseEntry(Section):
    """A model to start from. With ``settings``, it is first trained by a run that starts from ``model``."""

    name: Name
    model: LocalPath  # a directory or owner/name@revision; "demo": the base that ships with the package
    settings: Tables = Field(default_factory=dict)
    arm_settings: Tables = Field(
        default_factory=dict
    )  # for the arms that start here, such as their steps


class ArmEntry(Section):
    """One way to train a base. ``match`` ends the run at the reference arm's budget."""

    name: Name
    label: str = ""  # in tables and figures; empty: the name
    match: Literal["", "tokens", "flops"] = ""
    settings: Tables = Field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether the arm trains; without settings it is the base itself."""
        return bool(self.settings)


class StageEntry(Section):
    """A stage run after each arm."""

    name: Name
    settings: Tables


class EvaluationEntry(TextSection):
    """How models are measured: the same positions and random numbers for all. The keys of a source say
    what is read of ``corpus``."""

    corpus: str
    window_tokens: PositiveInt = 256
    positions: Literal["marked", "uniform"] = "marked"
    num_positions: NonNegativeInt = 0  # marked ones of a document, drawn at random; 0: all of them
    num_documents: PositiveInt = 512
    num_thoughts: PositiveInt = 8
    max_thought_tokens: PositiveInt = 32
    temperature: PositiveFloat = 1.0
    seed: NonNegativeInt = 1
    elsewhere: bool = True  # also measure at one other position per document
    think_open: str = "<think>"
    think_close: str = "</think>"


class DownstreamEntry(Section):
    """A benchmark behind every arm and stage: accuracy with standard error, plain and after a thought."""

    suite: str  # of `forethought downstream`, one with a mean
    data: LocalPath = ""  # a file with its questions; empty: the hub's
    think: bool = True  # also behind a thought that the prompt opens
    limit: NonNegativeInt = 0  # questions per task; 0: all
    max_tokens: NonNegativeInt = 0  # of an answer with its thought; 0: each task's own
    batch_size: PositiveInt = 16
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: the model's own
    seed: NonNegativeInt = 0
    think_open: str = ""  # empty: the markers of the evaluation
    think_close: str = ""

    @field_validator("suite")
    @classmethod
    def _has_mean(cls, name: str) -> str:
        from forethought.lab.downstream.suites import SUITES

        means = [name for name, suite in SUITES.items() if suite.has_mean]
        if name not in means:
            raise ValueError(
                f"{name!r} is not a suite with a mean; expected one of {', '.join(means)}"
            )
        return name


class ComparisonPlan(Section):
    """A whole comparison.

    Example:
        ``load_plan(Path("configs/compare-cpu.toml"))``
    """

    name: Name
    directory: Folder
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    processes: PositiveInt = 2  # concurrent runs
    reference: Name  # the arm that others are matched to and compared with
    demo_corpus: bool = False  # write the demo's corpora and random weights into DIRECTORY/corpus
    settings: Tables = Field(default_factory=dict)
    bases: Annotated[tuple[BaseEntry, ...], Field(min_length=1)]
    arms: Annotated[tuple[ArmEntry, ...], Field(min_length=1)]
    stages: tuple[StageEntry, ...] = ()
    evaluation: EvaluationEntry
    downstream: tuple[DownstreamEntry, ...] = ()

    @property
    def benchmarks(self) -> tuple[DownstreamEntry, ...]:
        """The entries of ``downstream``, each with its markers."""
        names = ("think_open", "think_close")
        return tuple(
            entry.model_copy(
                update={n: getattr(entry, n) or getattr(self.evaluation, n) for n in names}
            )
            for entry in self.downstream
        )

    @property
    def corpus(self) -> Path:
        """The folder that ``{corpus}`` expands to."""
        return self.directory / "corpus"

    @property
    def num_trials(self) -> int:
        """Number of measured models: each arm and stage per seed; arms without settings once per base."""
        num_arms = sum(len(self.seeds) if arm.trains else 1 for arm in self.arms)
        return len(self.bases) * num_arms * (1 + len(self.stages))

    @model_validator(mode="after")
    def _names_are_sound(self) -> ComparisonPlan:
        for kind in ("bases", "arms", "stages"):
            names = [entry.name for entry in getattr(self, kind)]
            if len(set(names)) < len(names):
                raise ValueError(f"two {kind} have the same name; got {', '.join(names)}")
        suites = [entry.suite for entry in self.downstream]
        if len(set(suites)) < len(suites):
            raise ValueError(
                f"two entries of downstream have the same suite; got {', '.join(suites)}"
            )
        reference = next((arm for arm in self.arms if arm.name == self.reference), None)
        if reference is None or not reference.trains or reference.match:
            raise ValueError(
                f"reference {self.reference!r} is not an arm with settings and without match; "
                "expected one of "
                + ", ".join(arm.name for arm in self.arms if arm.trains and not arm.match)
            )
        return self

    @model_validator(mode="after")
    def _measures_with_the_markers_of_its_runs(self) -> ComparisonPlan:
        for name in ("think_open", "think_close"):
            measured = getattr(self.evaluation, name)
            trained = self.settings.get("model", {}).get(name, measured)
            if trained != measured:
                raise ValueError(
                    f"settings.model.{name} is {trained!r}, evaluation.{name} {measured!r}; expected the "
                    "same: set both"
                )
        return self


def load_plan(path: Path, overrides: tuple[str, ...] = ()) -> ComparisonPlan:
    """Read a plan and check the settings of each of its runs.

    ``overrides`` are ``key=value`` pairs for plan keys, such as ``seeds=[0]`` or ``evaluation.seed=3``.

    Raises:
        InvalidInput: the file cannot be read, or keys or values are invalid; all errors are listed.
    """
    from forethought.config.loading import merge, override, read_toml

    merged: dict[str, Any] = read_toml(path)
    for key_value in overrides:
        merge(merged, override(key_value, num_keys=1, schema=ComparisonPlan))
    try:
        plan = ComparisonPlan.model_validate(merged)
        plan = ComparisonPlan.model_validate(_expanded(merged, str(plan.corpus)))
    except ValidationError as error:
        raise InvalidInput(_explain(error, path)) from None
    for base in plan.bases:
        for arm in (arm for arm in plan.arms if arm.trains):
            settings = check(f"arm {arm.name}", plan.settings, base.arm_settings, arm.settings)
            if arm.match:
                _check_ends(arm, settings)
        check(f"base {base.name}", plan.settings, base.settings)
    for stage in plan.stages:
        check(f"stage {stage.name}", plan.settings, stage.settings)
    return plan


def _check_ends(arm: ArmEntry, settings: Settings) -> None:
    """A matched arm has no last step: one that learns nothing ends by its limits only."""
    learner = settings.learner
    if not (learner.max_failed_batches and learner.max_unlearned_batches):
        raise InvalidInput(
            f"arm {arm.name} has match and no limit on batches without learning, so that it might never "
            "end; expected learner.max_failed_batches and learner.max_unlearned_batches above 0"
        )


def check(of: str, *layers: Tables) -> Settings:
    """The settings that result from layered tables; later layers override earlier ones.

    Raises:
        InvalidInput: a key or value is invalid for a run.
    """
    from forethought.preflight import check_run

    try:
        settings = Settings.model_validate(layered(*layers))
    except ValidationError as error:
        raise InvalidInput(_explain(error, of)) from None
    check_run(settings)
    return settings


def layered(*layers: Tables) -> dict[str, Any]:
    """Merge tables. An objective, or a corpus's paths, replaces that of earlier layers as a whole."""
    from forethought.config.loading import merge

    merged: dict[str, Any] = {}
    for layer in layers:
        if "name" in layer.get("objective", {}):
            merged.pop("objective", None)
        if layer.get("corpus", {}).keys() & {"path", "sources"}:
            for key in ("path", "sources", *TextSection.model_fields):
                merged.get("corpus", {}).pop(key, None)
        merge(merged, deepcopy(layer))
    return merged


def _expanded(value: Any, corpus: str) -> Any:
    if isinstance(value, str):
        return value.replace("{corpus}", corpus)
    if isinstance(value, dict):
        return {key: _expanded(entry, corpus) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expanded(entry, corpus) for entry in value]
    return value


def _explain(error: ValidationError, where: Path | str) -> str:
    faults = (
        f"  {'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()
    )
    return "\n".join((f"invalid comparison ({where}):", *faults))
