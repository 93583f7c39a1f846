"""The processes that ``forethought up`` will start, resolved and checked before any of them starts.

Design: the resolved configuration is written to DIR/up.toml, and every child gets that file and an
environment without the FORETHOUGHT_ variables already merged into it (the environment overrides a file,
and would override the command line's values). The Redis URL is passed in the environment: it may contain
a password, which ``ps`` must not show, and an embedded Redis has a new URL on every start. Tokens are
passed the same way; without one, everything runs on one machine and ``auth.open`` is set. The price is
that a child's command line alone does not reproduce it; DIR/up.toml does.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from forethought.auth import Guard
from forethought.auth.guard import is_loopback
from forethought.cli.launch import module_command
from forethought.cli.supervisor import Program
from forethought.config import Settings, load_settings
from forethought.config.loading import ENVIRONMENT_PREFIX
from forethought.errors import InvalidInput
from forethought.hub import HubId, model_folder
from forethought.run.directory import RunDirectory

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
}
"""Keeps freed memory in the process, in huge pages: the page faults of large tensors that come and go cost
6 to 10 % of a step's CPU time. The price is 0.1 to 0.2 GB more in each process, at 34M parameters."""

_EVERY_INTERFACE = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked run, not yet started. ``notes`` are messages for the user before the start.

    Example:
        ``prepare(Path("configs/text-cpu.toml"), ["corpus.path=books"])``
    """

    settings: Settings
    thinks: bool
    notes: tuple[str, ...] = ()

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.settings.run.directory)

    @property
    def logs(self) -> Path:
        """The folder of the children's logs."""
        return self.directory.root / "logs"

    @property
    def base_run(self) -> RunDirectory:
        """The next-token run that trains the small base model."""
        return RunDirectory(self.directory.root / "base" / "run")

    @property
    def base_model(self) -> Path:
        """The transformers directory of the small base model."""
        return self.directory.root / "base" / "model"

    @property
    def warmup_run(self) -> RunDirectory:
        """The run that warms up the think markers, if one is needed."""
        return RunDirectory(self.directory.warmup / "run")

    @property
    def children_config(self) -> Path:
        """The children's configuration; DIR/config.toml is written by the trainer while services read."""
        return self.directory.up_config

    @property
    def needs_base(self) -> bool:
        """Whether the small base model must be trained first."""
        return not (
            self.settings.model.path
            or self.base_model.exists()
            or self.directory.latest_checkpoint()
        )

    @property
    def reward_url(self) -> str | None:
        """The HTTP address of the first reward replica, or None without one."""
        if not (self.thinks and self.settings.reward.replicas):
            return None
        host = self.settings.reward.http_host
        host = "127.0.0.1" if host in _EVERY_INTERFACE else host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.reward.http_port}"

    def base_program(self, redis_url: str) -> Program:
        """The program that trains tokenizer and base into DIR/base."""
        return self._program("base", "trainer.make_base", (), redis_url)

    def trainer(self, redis_url: str) -> Program:
        """The learner."""
        return self._program("trainer", "trainer", self._model_overrides(), redis_url)

    def services(self, redis_url: str) -> list[Program]:
        """The replicas; the first of a kind gets the fixed ports, the others take free ones."""
        if not self.thinks:
            return []
        kinds = (
            ("rollout", self.settings.rollout.replicas, ("grpc_port", "ops_port")),
            ("reward", self.settings.reward.replicas, ("grpc_port", "ops_port", "http_port")),
        )
        return [
            self._program(
                f"{kind}-{number}",
                f"services.{kind}",
                () if number == 1 else tuple(f"{kind}.{port}=0" for port in ports),
                redis_url,
            )
            for kind, num_replicas, ports in kinds
            for number in range(1, num_replicas + 1)
        ]

    def _model_overrides(self) -> tuple[str, ...]:
        if self.settings.model.path or not self.base_model.exists():
            return ()
        return (f"model.path={self.base_model}",)

    def _program(self, name: str, module: str, overrides: Sequence[str], redis_url: str) -> Program:
        command = module_command(module, self.children_config, overrides)
        secrets = {"REDIS_URL": redis_url} | _token_values(self.settings)
        return Program(name, command, child_environment(os.environ, secrets))


def resolve(config: Path | None, overrides: Sequence[str]) -> Settings:
    """The settings; a run directory that is not set is named after the configuration file.

    Raises:
        InvalidInput: see :func:`forethought.config.load_settings`.
    """
    settings = load_settings(config, overrides)
    if "directory" in settings.run.model_fields_set:
        return settings
    return _with(settings, "run", directory=Path("runs") / (config.stem if config else "default"))


def prepare(config: Path | None, overrides: Sequence[str]) -> Plan:
    """Resolve and check a run.

    Raises:
        InvalidInput: an error that can be detected before a process is started.
    """
    from forethought.preflight import check_corpus, check_run
    from forethought.run.pinning import pinned

    settings = resolve(config, overrides)
    objective = check_run(settings)
    check_corpus(settings)
    settings = pinned(settings)
    _check_corpus(settings)
    _check_model(settings)
    _check_redis_password(settings)
    settings = _with_auth(settings)
    settings, notes = _with_http_port(settings)
    notes = (
        *notes,
        *_hub_notes(settings),
        *_replica_notes(settings, objective.thinks),
        *_auth_notes(settings),
    )
    plan = Plan(settings, objective.thinks, notes)
    _check_directory(plan.directory)
    return plan


def child_environment(environment: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: the parent's, without settings already in its file, plus ``secrets``.

    The allocator's settings are the parent's, else those of :data:`ALLOCATOR`. ``secrets`` are settings
    that must not appear in a file or command line, by name without the prefix.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(ENVIRONMENT_PREFIX)
    }
    secret = {f"{ENVIRONMENT_PREFIX}{name}": value for name, value in secrets.items()}
    return ALLOCATOR | kept | secret | {"PYTHONUNBUFFERED": "1"}


def _check_corpus(settings: Settings) -> None:
    from forethought.corpus.reading.source_files import list_source

    for source in settings.corpus.resolved_sources():
        list_source(source, RunDirectory(settings.run.directory).cache)


def _check_model(settings: Settings) -> None:
    path = settings.model.path
    if path and not model_folder(path, settings.model.revision).is_dir():
        raise InvalidInput(
            f"model.path {path!r} is not a directory; expected a transformers model directory, the id of a "
            "model on the Hugging Face hub (owner/name), or no model.path, to train a small base on the "
            "corpus"
        )


def _check_directory(directory: RunDirectory) -> None:
    """Take the run's lock briefly, so that a conflict is reported here and not in the trainer's log."""
    try:
        with directory.owned():
            pass
    except OSError as error:
        raise InvalidInput(
            f"run.directory {directory.root} is not writable: {error.strerror}; choose another, "
            "such as run.directory=/tmp/run"
        ) from error


def _check_redis_password(settings: Settings) -> None:
    if settings.redis.password_file and not settings.redis.url:
        raise InvalidInput(
            "redis.password_file is given and redis.url is not; expected both, or neither: the Redis "
            "that is started here listens on a socket of this user alone and has no password"
        )


def _with_auth(settings: Settings) -> Settings:
    """Set ``auth.open`` if no token is given; otherwise check that the token is valid for a run."""
    if settings.auth.has_tokens:
        Guard.of_replica(settings.auth)
        return settings
    return _with(settings, "auth", open=True)


def _token_values(settings: Settings) -> dict[str, str]:
    auth = settings.auth
    values = {"AUTH_TOKEN": auth.token, "AUTH_CLIENT_TOKEN": auth.client_token}
    return {name: value.get_secret_value() for name, value in values.items() if value}


def _hub_notes(settings: Settings) -> Iterator[str]:
    """The commits that the run uses."""
    named = [(settings.model.path, settings.model.revision)]
    named += [(source.path, source.revision) for source in settings.corpus.resolved_sources()]
    for path, revision in named:
        if hub_id := HubId.parse(path, revision):
            yield f"from the Hugging Face hub: {hub_id}"


def _replica_notes(settings: Settings, thinks: bool) -> Iterator[str]:
    if not thinks:
        yield f"objective {settings.objective.name} samples no thoughts: no replicas are started"
        return
    for kind, section in (("rollout", settings.rollout), ("reward", settings.reward)):
        if section.replicas == 0:
            yield f"{kind}.replicas is 0: the run waits until one is started by hand"


def _auth_notes(settings: Settings) -> Iterator[str]:
    """Warned here as well, because the services' own warning goes to their logs."""
    hosts = [settings.rollout.host, settings.reward.host, settings.reward.http_host]
    hosts.append(urlsplit(settings.redis.url).hostname or "")
    if settings.auth.open and not all(is_loopback(host) for host in hosts if host):
        yield (
            "no token is set: the services accept any client that reaches this machine; set "
            "FORETHOUGHT_AUTH_TOKEN or auth.token_file"
        )


def _with_http_port(settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Settings with a known, free reward.http_port; and notes about a changed one."""
    reward = settings.reward
    if reward.replicas == 0 or (reward.http_port and is_free(reward.http_host, reward.http_port)):
        return settings, ()
    chosen_by_user = "http_port" in reward.model_fields_set and reward.http_port
    if chosen_by_user:
        raise InvalidInput(
            f"reward.http_port {reward.http_port} on {reward.http_host} is taken by another "
            "program; choose another, or reward.http_port=0 for any free port"
        )
    port = free_port(reward.http_host)
    taken = f"port {reward.http_port} is taken: the reward service listens on {port} instead"
    notes = (taken,) if reward.http_port else ()
    return _with(settings, "reward", http_port=port), notes


def _with(settings: Settings, section: str, **values: object) -> Settings:
    changed = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: changed})


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on this address now."""
    return any(_bound_ports(host, port))


def free_port(host: str) -> int:
    """A free port.

    Raises:
        InvalidInput: ``host`` is not an address of this machine.
    """
    for port in _bound_ports(host, 0):
        return port
    raise InvalidInput(f"cannot listen on {host!r}; expected an address of this machine")


def _bound_ports(host: str, port: int) -> Iterator[int]:
    """The port if it could be bound (it is released at once); nothing otherwise."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers set it
        try:
            probe.bind((host, port))
        except OSError:
            return
        yield int(probe.getsockname()[1])
