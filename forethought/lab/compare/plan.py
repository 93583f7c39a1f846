"""What is compared: bases, arms, seeds and stages, read from one TOML file.

    [settings]    of every run: the sections of a run's configuration
    [[bases]]     models to start from; one with ``settings`` is trained first, from its ``model``
    [[arms]]      what is done to them; an arm without settings is the base itself
    [[stages]]    what follows each arm, in order: SFT, RLVR
    [evaluation]  where all of them are measured

Design: settings stay the nested tables of a run's configuration, because an arm is a run and nothing
else; each is validated by the same :class:`Settings` before anything starts. ``{corpus}`` in a string
stands for the folder of the corpus that ``demo_corpus`` writes. The price of having no loops or
conditions here: a grid over a parameter is written out as arms.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from forethought.config.sections import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Settings,
)
from forethought.errors import InvalidInput

Tables = dict[str, dict[str, Any]]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
DEMO_MODEL = "demo"
"""The ``model`` of a base that ships with the package."""


class BaseEntry(Section):
    """A model to start from. With ``settings`` it is trained first, by a run that starts at ``model``."""

    name: Name
    model: str  # a directory; "demo": the base that ships
    settings: Tables = Field(default_factory=dict)
    arm_settings: Tables = Field(
        default_factory=dict
    )  # of arms that start here, such as their steps


class ArmEntry(Section):
    """What is done to a base. ``match`` ends a run once it has taken as much as the reference arm."""

    name: Name
    label: str = ""  # in tables and figures; empty: the name
    match: Literal["", "tokens", "flops"] = ""
    settings: Tables = Field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether the arm does anything to its base."""
        return bool(self.settings)


class StageEntry(Section):
    """What follows an arm."""

    name: Name
    settings: Tables


class EvaluationEntry(Section):
    """Where models are measured: the same positions and random numbers for all."""

    corpus: str
    window_tokens: PositiveInt = 256
    positions: Literal["marked", "uniform"] = "marked"
    num_documents: PositiveInt = 512
    num_thoughts: PositiveInt = 8
    max_thought_tokens: PositiveInt = 32
    temperature: PositiveFloat = 1.0
    seed: NonNegativeInt = 1
    elsewhere: bool = True  # also at one other position per document


class ComparisonPlan(Section):
    """A whole comparison.

    Example:
        ``load_plan(Path("configs/compare-cpu.toml"))``
    """

    name: Name
    directory: Path
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    processes: PositiveInt = 2  # runs at a time
    reference: Name  # the arm that others are matched to and compared with
    demo_corpus: bool = False  # write the demo's corpora and random weights into DIRECTORY/corpus
    settings: Tables = Field(default_factory=dict)
    bases: Annotated[tuple[BaseEntry, ...], Field(min_length=1)]
    arms: Annotated[tuple[ArmEntry, ...], Field(min_length=1)]
    stages: tuple[StageEntry, ...] = ()
    evaluation: EvaluationEntry

    @property
    def corpus(self) -> Path:
        """What ``{corpus}`` stands for."""
        return self.directory / "corpus"

    @property
    def num_trials(self) -> int:
        """How many models are measured: each arm and stage, arms that do nothing once per base."""
        num_arms = sum(len(self.seeds) if arm.trains else 1 for arm in self.arms)
        return len(self.bases) * num_arms * (1 + len(self.stages))

    @model_validator(mode="after")
    def _names_are_sound(self) -> ComparisonPlan:
        for kind in ("bases", "arms", "stages"):
            names = [entry.name for entry in getattr(self, kind)]
            if len(set(names)) < len(names):
                raise ValueError(f"two {kind} have the same name; got {', '.join(names)}")
        reference = next((arm for arm in self.arms if arm.name == self.reference), None)
        if reference is None or not reference.trains or reference.match:
            raise ValueError(
                f"reference {self.reference!r} is no arm with settings and without match; expected one of "
                + ", ".join(arm.name for arm in self.arms if arm.trains and not arm.match)
            )
        return self


def load_plan(path: Path, words: tuple[str, ...] = ()) -> ComparisonPlan:
    """Read a plan and check the settings of each of its runs.

    ``words`` are ``key=value`` overrides of its own keys, such as ``seeds=[0]`` or ``evaluation.seed=3``.

    Raises:
        InvalidInput: it cannot be read, or a key or value is wrong; every fault is named.
    """
    from forethought.config.loading import merge, override, read_toml

    merged: dict[str, Any] = read_toml(path)
    for word in words:
        merge(merged, override(word, num_keys=1))
    try:
        plan = ComparisonPlan.model_validate(merged)
        plan = ComparisonPlan.model_validate(_expanded(merged, str(plan.corpus)))
    except ValidationError as error:
        raise InvalidInput(_explain(error, path)) from None
    for base in plan.bases:
        for arm in (arm for arm in plan.arms if arm.trains):
            check(f"arm {arm.name}", plan.settings, base.arm_settings, arm.settings)
        check(f"base {base.name}", plan.settings, base.settings)
    for stage in plan.stages:
        check(f"stage {stage.name}", plan.settings, stage.settings)
    return plan


def check(of: str, *layers: Tables) -> Settings:
    """The settings that layers of tables come to, later ones before earlier ones.

    Raises:
        InvalidInput: a key or value that no run takes.
    """
    from forethought.preflight import check_run

    try:
        settings = Settings.model_validate(layered(*layers))
    except ValidationError as error:
        raise InvalidInput(_explain(error, of)) from None
    check_run(settings)
    return settings


def layered(*layers: Tables) -> dict[str, Any]:
    """Tables over tables. An objective, or what a corpus reads, replaces the one below as a whole."""
    from forethought.config.loading import merge

    merged: dict[str, Any] = {}
    for layer in layers:
        if "name" in layer.get("objective", {}):
            merged.pop("objective", None)
        if layer.get("corpus", {}).keys() & {"path", "sources"}:
            for key in ("path", "sources"):
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
