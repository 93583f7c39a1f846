"""docker compose for tests: a separate project, watched, timed, and removed with its volumes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

from tests.repository import ROOT

IMAGES = ("forethought-rollout", "forethought-reward", "forethought-trainer")
RUN_DIRECTORY = "/runs/demo"
_PROJECT_LABEL = "label=com.docker.compose.project="
_POLL_S = 2.0

T = TypeVar("T")


class Stack:
    """One project of docker-compose.yml; leaving the context removes everything except the images.

    ``settings`` are FORETHOUGHT_… variables of learner and replicas.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.times: list[tuple[str, float]] = []
        self.port = _free_port()
        self._project = f"forethought-test-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        _write_secrets(folder / "secrets")
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (folder / "settings.env").write_text("".join(lines), encoding="utf-8")

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.compose("logs", "--no-color", "--tail", "40", check=False))
        with self.timed("tear-down"):
            self.compose("down", "--volumes", "--remove-orphans")

    def compose(self, *words: str, check: bool = True) -> str:
        """``docker compose`` in this project; returns its output."""
        own = {
            "SECRETS": str(self._folder / "secrets"),
            "SETTINGS": str(self._folder / "settings.env"),
            "REWARD_PORTS": str(self.port),
        }
        command = ("compose", "-p", self._project, "--profile", "cpu", *words)
        return docker(*command, check=check, environment=own)

    def token(self, name: str) -> str:
        """A secret of this project."""
        return (self._folder / "secrets" / name).read_text(encoding="utf-8")

    def container(self, service: str) -> str:
        """The id of a service's only container, even if it has ended."""
        (found,) = self.compose("ps", "--all", "--quiet", service).split()
        return found

    def running(self, service: str) -> set[str]:
        """Host names of a service's running containers."""
        return {found[:12] for found in self.compose("ps", "--quiet", service).split()}

    def scale(self, service: str, count: int) -> None:
        """Add or remove replicas without touching other services."""
        words = ("up", "--detach", "--no-deps", "--no-recreate", "--scale", f"{service}={count}")
        self.compose(*words, service)

    def status(self) -> dict[str, Any]:
        """``forethought status`` from inside a container; empty while Redis is unreachable."""
        said = self.compose("exec", "-T", "trainer", "forethought", "status", "--json", check=False)
        lines = [line for line in said.splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    def step(self) -> int:
        """The last step that the learner has logged; 0 before the first."""
        return int((self.status().get("manifest") or {}).get("step", 0))

    def exit_status(self, service: str) -> int | None:
        """The exit status of a service's only container; None while it runs."""
        state = json.loads(docker("inspect", self.container(service)))[0]["State"]
        return None if state["Running"] or state["Restarting"] else int(state["ExitCode"])

    def copy_run(self) -> Path:
        """The run directory, copied out of its volume."""
        copied = self._folder / "run"
        self.compose("cp", f"trainer:{RUN_DIRECTORY}", str(copied))
        return copied

    def left_behind(self) -> str:
        """Remaining containers, volumes and networks of the project."""
        label = f"{_PROJECT_LABEL}{self._project}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return "".join(docker(*words, "--quiet", "--filter", label) for words in kinds)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long the block took."""
        started_s = time.monotonic()
        yield
        self.times.append((what, time.monotonic() - started_s))
        print(f"  {self.times[-1][1]:7.1f} s  {what}", flush=True)


def docker(*words: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
    """Run docker from the root of the project; returns stdout."""
    done = subprocess.run(
        ["docker", *words],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        pytest.fail(f"docker {' '.join(words)}: status {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout


def build_images() -> None:
    """``make images``: built by compose they would keep the labels of the test's project."""
    done = subprocess.run(["make", "images"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def image_sizes() -> dict[str, int]:
    """Bytes of every image, its base included."""
    return {
        image: int(docker("image", "inspect", "--format", "{{.Size}}", f"{image}:cpu"))
        for image in IMAGES
    }


def has_engine() -> bool:
    """Whether a Docker engine with compose answers."""
    if shutil.which("docker") is None:
        return False
    return bool(docker("compose", "version", check=False) and docker("info", check=False))


def eventually(what: str, look: Callable[[], T], timeout_s: float) -> T:
    """Poll ``look`` until it returns a true value, and return it."""
    deadline_s = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline_s:
            pytest.fail(f"{what}: not within {timeout_s} s")
        time.sleep(_POLL_S)
    return seen


def _write_secrets(folder: Path) -> None:
    folder.mkdir()
    for name in ("token", "client-token", "redis-password"):
        (folder / name).write_text(secrets.token_hex(16), encoding="utf-8")
        (folder / name).chmod(0o444)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
