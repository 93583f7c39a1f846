"""The overlays, rendered by kustomize from a copy with generated secrets.

python tests/deploy/rendering.py FOLDER     writes one file per composition, for the checkers of `k8s/check`
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.repository import ROOT

SECRET_FILES = ("token", "client-token", "redis-password")
NAMESPACE = "forethought"

COMPOSED = {
    "base": ("base", ()),
    "cpu": ("overlays/cpu", ()),
    "gpu": ("overlays/gpu", ()),
    "cpu-keda": ("overlays/cpu", ("keda",)),
    "cpu-podmonitor": ("overlays/cpu", ("podmonitor",)),
    "cpu-ingress": ("overlays/cpu", ("ingress",)),
    "cpu-learner-job": ("overlays/cpu", ("learner-job",)),
    "gpu-everything": ("overlays/gpu", ("keda", "podmonitor", "ingress", "learner-job")),
}
"""The checked compositions: a folder of k8s/ and components on top of it, as users compose them."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The objects of one composition."""

    name: str
    objects: tuple[Object, ...]

    def of_kind(self, *kinds: str) -> list[Object]:
        """All objects of some kinds."""
        return [o for o in self.objects if o["kind"] in kinds]

    def one(self, kind: str, name: str) -> Object:
        """The object of a kind with a name, hash or no hash behind it."""
        found = [o for o in self.of_kind(kind) if plain_name(o) == name]
        assert len(found) == 1, f"{self.name}: {len(found)} of {kind} {name}"
        return found[0]

    @cached_property
    def workloads(self) -> list[Object]:
        """Everything that has a pod template."""
        return self.of_kind("Deployment", "StatefulSet", "Job")

    def workload(self, component: str) -> Object:
        """The workload of a component."""
        (found,) = [w for w in self.workloads if w["metadata"]["name"] == component]
        return found

    def run_toml(self) -> str:
        """The run's configuration."""
        text: str = self.one("ConfigMap", "forethought-run")["data"]["run.toml"]
        return text


def pod_of(workload: Object) -> Object:
    """The pod's specification."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def labels_of(workload: Object) -> dict[str, str]:
    """The pod's labels."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers_of(workload: Object) -> list[Object]:
    """All containers, those of the start included."""
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def main_container(workload: Object) -> Object:
    """The one that stays."""
    (container,) = pod_of(workload)["containers"]
    assert isinstance(container, dict)
    return container


def plain_name(thing: Object) -> str:
    """The name without the hash that a generator put behind it."""
    name: str = thing["metadata"]["name"]
    stem, _, last = name.rpartition("-")
    is_hashed = thing["kind"] in ("ConfigMap", "Secret") and len(last) == 10
    return stem if is_hashed else name


def kustomize() -> list[str] | None:
    """The command that renders a folder, or None without kustomize 5."""
    tools = (("kustomize", "build"), ("kubectl", "kustomize"))
    for path, words in ((shutil.which(tool), (tool, word)) for tool, word in tools):
        if path and _is_five(words):
            return list(words)
    return None


def render_all() -> Iterator[Rendered]:
    """Every composition."""
    command = kustomize()
    assert command is not None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_sources(folder)
        for name, (base, components) in COMPOSED.items():
            rendered = render(command, _compose(folder / name, base, components))
            yield Rendered(name, tuple(yaml.safe_load_all(rendered)))


def copy_sources(folder: Path) -> None:
    """Copy the manifests, with dummy secrets."""
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    (folder / "secrets").mkdir()
    shutil.copy(ROOT / "secrets" / "kustomization.yaml", folder / "secrets")
    for name in SECRET_FILES:
        (folder / "secrets" / name).write_text(f"made-up-{name}\n", encoding="utf-8")


def render(command: list[str], folder: Path) -> str:
    """One folder as YAML."""
    run = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(f"{folder} does not render: {run.stderr}")
    return run.stdout


def _compose(folder: Path, base: str, components: tuple[str, ...]) -> Path:
    folder.mkdir()
    kustomization = {
        "resources": [f"../k8s/{base}"],
        "components": [f"../k8s/components/{component}" for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder


def _is_five(words: tuple[str, str]) -> bool:
    """kubectl includes kustomize 5 from 1.27 on; older ones do not support components."""
    flag = ["version"] if words[0] == "kustomize" else ["version", "--client"]
    run = subprocess.run([words[0], *flag], capture_output=True, text=True, check=False)
    return "v5." in run.stdout


def main(folder: Path) -> int:
    """Write every rendered composition; returns the exit status."""
    if kustomize() is None:
        print(
            "rendering: neither kustomize 5 nor kubectl 1.27 or newer is on PATH; install one: "
            "https://kubernetes.io/docs/tasks/tools/, or with Go: "
            "go install sigs.k8s.io/kustomize/kustomize/v5@latest",
            file=sys.stderr,
        )
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    for rendered in render_all():
        text = yaml.safe_dump_all(rendered.objects)
        (folder / f"{rendered.name}.yaml").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
