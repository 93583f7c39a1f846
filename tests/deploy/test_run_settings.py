"""The settings of the processes in a cluster: from run.toml, the manifests and the images' ENV."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client import CollectorRegistry

from forethought import process
from forethought.cli.init import init
from forethought.config import Settings, load_settings
from forethought.preflight import check_corpus, check_redis, check_run
from forethought.queue.interface import Stage
from forethought.queue.keys import Keys
from forethought.telemetry.ops import OpsServer
from tests.deploy.rendering import ROOT, Object, Rendered, containers_of, main_container, pod_of

pytestmark = pytest.mark.deploy

PREFIX = "FORETHOUGHT_"
SECRETS = "/run/secrets/forethought"
DOCKERFILES = {
    "rollout": ROOT / "services" / "rollout" / "Dockerfile",
    "reward": ROOT / "services" / "reward" / "Dockerfile",
    "learner": ROOT / "trainer" / "Dockerfile",
}
IMAGES = {
    "rollout": "forethought-rollout",
    "reward": "forethought-reward",
    "learner": "forethought-trainer",
}
MODULES = {"rollout": "services.rollout", "reward": "services.reward", "learner": "trainer"}


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """(keyword, rest) of each instruction, continued lines joined."""
    text = dockerfile.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword:
            yield keyword.upper(), rest


def image_environment(component: str) -> dict[str, str]:
    """Settings in the ENV of an image."""
    words = [
        word
        for keyword, rest in instructions(DOCKERFILES[component])
        if keyword == "ENV"
        for word in rest.split()
    ]
    pairs = [word.split("=", 1) for word in words if word.startswith(PREFIX)]
    return {name: value.strip('"') for name, value in pairs}


def manifest_environment(container: Object) -> dict[str, str]:
    """Settings in the env of a container."""
    return {e["name"]: e["value"] for e in container.get("env", []) if e["name"].startswith(PREFIX)}


def resolved(rendered: Rendered, component: str, folder: Path) -> Settings:
    """The settings that a component resolves, with generated secrets."""
    for name in ("token", "client-token", "redis-password"):
        (folder / name).write_text("made-up\n", encoding="utf-8")
    (folder / "run.toml").write_text(rendered.run_toml(), encoding="utf-8")
    container = main_container(rendered.workload(component))
    environment = image_environment(component) | manifest_environment(container)
    (folder / "objectives").mkdir(exist_ok=True)
    places = {SECRETS: str(folder), "/objectives": str(folder / "objectives")}
    for there, here in places.items():
        environment = {name: value.replace(there, here) for name, value in environment.items()}
    return load_settings(folder / "run.toml", [], environment)


def known(name: str) -> bool:
    """Whether a variable names a setting."""
    section, _, key = name.removeprefix(PREFIX).lower().partition("_")
    field = Settings.model_fields.get(section)
    return field is not None and key in getattr(field.annotation, "model_fields", {})


def ports_of(container: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


@pytest.mark.parametrize("component", DOCKERFILES)
def test_settings_in_images_exist(component: str) -> None:
    environment = image_environment(component)
    assert environment, "an image sets its ports"
    assert not [name for name in environment if not known(name)]


def test_settings_in_compose_exist() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    given = {
        name
        for service in compose["services"].values()
        for name in _environment_names(service.get("environment", {}))
        if name.startswith(PREFIX)
    }
    assert given
    assert not [name for name in given if not known(name)]


def _environment_names(environment: dict[str, str] | list[str]) -> list[str]:
    if isinstance(environment, dict):
        return list(environment)
    return [word.partition("=")[0] for word in environment]


def test_settings_in_manifests_exist_and_are_valid(rendered: Rendered, tmp_path: Path) -> None:
    for component in MODULES:
        for container in containers_of(rendered.workload(component)):
            assert not [name for name in manifest_environment(container) if not known(name)]
        settings = resolved(rendered, component, tmp_path)  # refuses unknown keys of run.toml
        objective = check_run(settings)
        check_corpus(settings)
        check_redis(settings, objective)


def test_nothing_in_run_toml_is_overridden_by_the_environment(rendered: Rendered) -> None:
    """The environment overrides the file, so a key set in both would be misleading."""
    settings_table = tomllib.loads(rendered.run_toml())
    for component in MODULES:
        container = main_container(rendered.workload(component))
        for name in image_environment(component) | manifest_environment(container):
            section, _, key = name.removeprefix(PREFIX).lower().partition("_")
            assert key not in settings_table.get(section, {}), (
                f"{component}: {name} overrides run.toml"
            )


def test_every_replica_has_a_listen_address(rendered: Rendered, tmp_path: Path) -> None:
    for component in MODULES:
        settings = resolved(rendered, component, tmp_path)
        section = getattr(settings, component)
        ports = ports_of(main_container(rendered.workload(component)))
        assert section.ops_port == ports["ops"]
        if component == "learner":
            continue
        assert section.grpc_port == ports["grpc"]
        assert section.host in ("", "0.0.0.0")
        if component == "reward":
            assert (section.http_host, section.http_port) == ("0.0.0.0", ports["http"])


def test_every_process_reaches_redis_and_has_a_token(rendered: Rendered, tmp_path: Path) -> None:
    for component in MODULES:
        settings = resolved(rendered, component, tmp_path)
        url = urlsplit(settings.redis.url)
        (port,) = rendered.one("Service", "redis")["spec"]["ports"]
        assert (url.hostname, url.port) == ("redis", port["port"])
        assert url.password == "made-up"
        assert not settings.auth.open
        files = {Path(settings.auth.token_file).name, Path(settings.redis.password_file).name}
        if component == "learner":
            assert not settings.auth.client_token_file, "who never asks needs no client's token"
        else:
            files.add(Path(settings.auth.client_token_file).name)
        assert files == _mounted_secrets(rendered.workload(component))


def _mounted_secrets(workload: Object) -> set[str]:
    (mount,) = [m for m in main_container(workload)["volumeMounts"] if m["mountPath"] == SECRETS]
    (volume,) = [v for v in pod_of(workload)["volumes"] if v["name"] == mount["name"]]
    return {
        item["path"]
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


def test_redis_reads_its_password_where_it_is_mounted(rendered: Rendered) -> None:
    workload = rendered.workload("redis")
    mounts = {m["mountPath"] for m in main_container(workload)["volumeMounts"]}
    files = rendered.one("ConfigMap", "forethought-redis")["data"]
    (ping,) = {
        probe["exec"]["command"][-1]
        for key, probe in main_container(workload).items()
        if key.endswith("Probe")
    }
    for text in (files["redis-start.sh"], ping):
        assert "/run/secrets/redis/password" in text
    assert {"/run/secrets/redis", "/etc/redis", "/data", "/tmp"} <= mounts
    settings_table = dict(
        line.split(maxsplit=1) for line in files["redis.conf"].splitlines() if _is_directive(line)
    )
    assert (
        settings_table["appendonly"],
        settings_table["maxmemory-policy"],
        settings_table["dir"],
    ) == (
        "yes",
        "noeviction",
        "/data",
    )
    assert "user default on #%s ~forethought:*" in files["redis-start.sh"]
    assert Keys("any").epoch.startswith("forethought:"), "the user of the ACL may use no other key"


def _is_directive(line: str) -> bool:
    return bool(line) and not line.startswith("#")


def test_the_learner_keeps_its_run_and_finds_its_model(rendered: Rendered, tmp_path: Path) -> None:
    workload, settings = rendered.workload("learner"), resolved(rendered, "learner", tmp_path)
    volumes = {v["name"]: v for v in pod_of(workload)["volumes"]}
    claims = {
        mount["mountPath"]: volumes[mount["name"]]["persistentVolumeClaim"]["claimName"]
        for mount in main_container(workload)["volumeMounts"]
        if "persistentVolumeClaim" in volumes[mount["name"]]
    }
    paths = {
        settings.run.directory: "runs",
        settings.model.path: "models",
        **{source.path: "models" for source in settings.corpus.resolved_sources()},
    }
    for path, claim in paths.items():
        parents = map(str, PurePosixPath(path).parents)
        assert [claims[parent] for parent in parents if parent in claims] == [claim], path


def test_the_demo_is_initialised_where_the_learner_looks(
    all_rendered: dict[str, Rendered], tmp_path: Path
) -> None:
    rendered = all_rendered["cpu"]
    (container,) = pod_of(rendered.workload("learner"))["initContainers"]
    assert container["command"] == ["forethought", "init", "/models/demo", "--if-missing"]
    init(tmp_path / "demo", if_missing=True)
    written = (tmp_path / "demo" / "run.toml").read_text(encoding="utf-8")
    demo = tomllib.loads(written.replace(str(tmp_path / "demo"), "/models/demo"))
    settings_table = tomllib.loads(rendered.run_toml())
    assert demo.keys() < settings_table.keys()
    for section in demo.keys() - {"run"}:
        for key, value in settings_table[section].items():
            assert value == demo[section][key], f"{section}.{key}"
    for path in (settings_table["model"]["path"], settings_table["corpus"]["path"]):
        assert Path(path.replace("/models/demo", str(tmp_path / "demo"))).exists()


def test_each_kind_of_learner_ends_as_documented(rendered: Rendered, tmp_path: Path) -> None:
    """A StatefulSet restarts a pod after success; a Job counts exit 0 as complete, whatever stopped it."""
    workload = rendered.workload("learner")
    section = resolved(rendered, "learner", tmp_path).learner
    if workload["kind"] == "StatefulSet":
        assert (section.stay, section.stopped_status) == (True, 0)
        assert workload["spec"]["replicas"] == 1
        return
    assert not section.stay
    assert pod_of(workload)["restartPolicy"] == "Never"
    actions = {
        status: rule["action"]
        for rule in workload["spec"]["podFailurePolicy"]["rules"]
        for status in rule.get("onExitCodes", {}).get("values", [])
    }
    failures = (process.USER_ERROR, process.SUPERSEDED, process.NOTHING_LEARNED)
    assert actions == {section.stopped_status: "Ignore", **dict.fromkeys(failures, "FailJob")}


def test_draining_fits_into_the_grace_period(rendered: Rendered, tmp_path: Path) -> None:
    for component in ("rollout", "reward"):
        pod = pod_of(rendered.workload(component))
        drain_s = getattr(resolved(rendered, component, tmp_path), component).drain_s
        (word, seconds) = main_container(rendered.workload(component))["lifecycle"]["preStop"][
            "exec"
        ]["command"]
        assert word == "sleep"
        assert pod["terminationGracePeriodSeconds"] >= float(seconds) + drain_s + 15
    assert pod_of(rendered.workload("learner"))["terminationGracePeriodSeconds"] >= 120


def test_probes_query_existing_endpoints(rendered: Rendered, tmp_path: Path) -> None:
    ops = OpsServer("127.0.0.1", 0, lambda: True, dict, CollectorRegistry())
    pages = set(re.findall(r'"(/\w+)"', inspect.getsource(type(ops).__init__)))
    assert pages == {"/healthz", "/readyz", "/metrics"}
    expected = {
        "startupProbe": "/healthz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }
    for component in MODULES:
        container = main_container(rendered.workload(component))
        for kind, page in expected.items():
            assert container[kind]["httpGet"] == {"path": page, "port": "ops"}
        assert ports_of(container)["ops"] == 9100
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    for monitor in rendered.of_kind("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert (endpoint["port"], endpoint["path"]) == ("ops", "/metrics")


def test_images_are_those_of_the_dockerfiles(rendered: Rendered) -> None:
    variant = "cuda" if rendered.name.startswith("gpu") else "cpu"
    for component, image in IMAGES.items():
        for container in containers_of(rendered.workload(component)):
            assert container["image"] == f"{image}:{variant}", container["name"]
        container = main_container(rendered.workload(component))
        assert "command" not in container, "the entry point is the image's"
        assert container["args"] == ["--config", "/etc/forethought/run.toml"]
        mounts = {m["mountPath"] for m in container["volumeMounts"]}
        assert "/etc/forethought" in mounts
    (redis,) = containers_of(rendered.workload("redis"))
    assert redis["image"] == _compose_redis()


def _compose_redis() -> str:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    image: str = compose["services"]["redis"]["image"]
    return image


@pytest.mark.parametrize("component", DOCKERFILES)
def test_images_run_as_the_user_of_the_manifests(component: str) -> None:
    last = dict(instructions(DOCKERFILES[component]))
    assert last["USER"] == "10001:10001"
    assert last["ENTRYPOINT"] == f'["python", "-m", "{MODULES[component]}"]'
    exposed = {"rollout": "50051 9100", "reward": "8080 50051 9100", "learner": "9100"}
    assert last["EXPOSE"] == exposed[component]


def test_only_the_gpu_overlay_requests_gpus(rendered: Rendered, tmp_path: Path) -> None:
    has_gpus = rendered.name.startswith("gpu")
    for component in MODULES:
        resources = main_container(rendered.workload(component))["resources"]
        for amounts in resources.values():
            assert ("nvidia.com/gpu" in amounts) == has_gpus
    engine = resolved(rendered, "rollout", tmp_path).rollout.engine
    assert engine == ("vllm" if has_gpus else "torch")


def test_the_scaler_watches_the_stream_of_the_run(rendered: Rendered, tmp_path: Path) -> None:
    settings = resolved(rendered, "rollout", tmp_path)
    for scaler in rendered.of_kind("ScaledObject"):
        (trigger,) = scaler["spec"]["triggers"]
        assert trigger["metadata"]["stream"] == Keys(settings.run.name).stream(Stage.TASKS)
        assert int(trigger["metadata"]["streamLength"]) >= 1
