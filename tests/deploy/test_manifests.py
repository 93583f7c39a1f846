"""The manifests are consistent: references resolve, and the documented properties hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.deploy.rendering import (
    NAMESPACE,
    Object,
    Rendered,
    containers_of,
    labels_of,
    main_container,
    plain_name,
    pod_of,
)

pytestmark = pytest.mark.deploy

KINDS = {
    "v1": {
        "Namespace",
        "ServiceAccount",
        "ConfigMap",
        "Secret",
        "Service",
        "PersistentVolumeClaim",
    },
    "apps/v1": {"Deployment", "StatefulSet"},
    "batch/v1": {"Job"},
    "policy/v1": {"PodDisruptionBudget"},
    "networking.k8s.io/v1": {"NetworkPolicy", "Ingress"},
}
CUSTOM_KINDS = {
    "keda.sh/v1alpha1": {"ScaledObject", "TriggerAuthentication"},
    "monitoring.coreos.com/v1": {"PodMonitor"},
}
PROVIDED = {"forethought-auth": {"token", "client-token"}, "forethought-redis": {"password"}}
"""Secrets that the user supplies, unless an overlay generates them."""


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches labels."""
    wanted = selector.get("matchLabels", {})
    among = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in among)
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in among
    )


def selected(rendered: Rendered, selector: Mapping[str, Any]) -> list[str]:
    return [w["metadata"]["name"] for w in rendered.workloads if matches(selector, labels_of(w))]


def strings(tree: object) -> Iterator[tuple[str, str]]:
    """Every (key, string) in a tree."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, str):
                yield key, value
            yield from strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from strings(value)


def test_only_components_need_more_than_a_bare_cluster(rendered: Rendered) -> None:
    has_components = "-" in rendered.name
    for thing in rendered.objects:
        kinds = KINDS.get(thing["apiVersion"], set())
        if has_components:
            kinds = kinds | CUSTOM_KINDS.get(thing["apiVersion"], set())
        assert thing["kind"] in kinds, f"{thing['apiVersion']} {thing['kind']}"


def test_everything_is_in_the_namespace_and_named_once(rendered: Rendered) -> None:
    for thing in rendered.objects:
        if thing["kind"] != "Namespace":
            assert thing["metadata"].get("namespace") == NAMESPACE, thing["metadata"]
    (namespace,) = rendered.of_kind("Namespace")
    assert namespace["metadata"]["name"] == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in rendered.objects]
    assert len(names) == len(set(names))


def test_the_four_components_are_there(rendered: Rendered) -> None:
    found = {w["metadata"]["name"]: w["kind"] for w in rendered.workloads}
    is_job = rendered.name in ("cpu-learner-job", "gpu-everything")
    assert found == {
        "redis": "StatefulSet",
        "rollout": "Deployment",
        "reward": "Deployment",
        "learner": "Job" if is_job else "StatefulSet",
    }
    for workload in rendered.workloads:
        labels = labels_of(workload)
        assert labels["app.kubernetes.io/name"] == "forethought"
        assert labels["app.kubernetes.io/component"] == workload["metadata"]["name"]


def test_selectors_match_only_their_own_pods(rendered: Rendered) -> None:
    for workload in rendered.workloads:
        if workload["kind"] != "Job":
            assert selected(rendered, workload["spec"]["selector"]) == [
                workload["metadata"]["name"]
            ]
        for spread in pod_of(workload).get("topologySpreadConstraints", []):
            assert selected(rendered, spread["labelSelector"]) == [workload["metadata"]["name"]]
    for service in rendered.of_kind("Service"):
        name = service["metadata"]["name"]
        assert selected(rendered, {"matchLabels": service["spec"]["selector"]}) == [name]
    for budget in rendered.of_kind("PodDisruptionBudget"):
        name = budget["metadata"]["name"]
        assert selected(rendered, budget["spec"]["selector"]) == [name]
    for monitor in rendered.of_kind("PodMonitor"):
        assert set(selected(rendered, monitor["spec"]["selector"])) == {
            "learner",
            "reward",
            "rollout",
        }


def test_services_target_existing_ports(rendered: Rendered) -> None:
    expected = {
        "redis": {"redis": 6379},
        "rollout": {"grpc": 50051},
        "reward": {"http": 8080, "grpc": 50051},
        "learner": {"ops": 9100},
    }
    for name, wanted in expected.items():
        service, container = (
            rendered.one("Service", name),
            main_container(rendered.workload(name)),
        )
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {p["name"]: p["port"] for p in service["spec"]["ports"]} == wanted
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], f"{name} {port}"
    for name in ("redis", "learner"):
        for workload in rendered.of_kind("StatefulSet"):
            if workload["metadata"]["name"] == name:
                assert workload["spec"]["serviceName"] == name
    assert rendered.one("Service", "rollout")["spec"]["clusterIP"] == "None"
    for ingress in rendered.of_kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                ports = rendered.one("Service", service["name"])["spec"]["ports"]
                assert service["port"]["name"] in {port["name"] for port in ports}


def test_disruption_budgets_allow_a_drain(rendered: Rendered) -> None:
    budgets = {b["metadata"]["name"]: b["spec"] for b in rendered.of_kind("PodDisruptionBudget")}
    assert set(budgets) == {"rollout", "reward"}
    for name, spec in budgets.items():
        replicas = rendered.workload(name)["spec"].get("replicas", 1)
        if "minAvailable" in spec:
            assert spec["minAvailable"] < replicas
        else:
            assert spec["maxUnavailable"] >= 1


def test_only_the_scaler_sets_the_number_of_replicas(rendered: Rendered) -> None:
    scaled = {
        (o["spec"]["scaleTargetRef"]["kind"], o["spec"]["scaleTargetRef"]["name"])
        for o in rendered.of_kind("ScaledObject")
    }
    assert scaled == ({("Deployment", "rollout")} if "keda" in _components(rendered) else set())
    for workload in rendered.workloads:
        if workload["kind"] == "Job":
            continue
        is_scaled = (workload["kind"], workload["metadata"]["name"]) in scaled
        assert ("replicas" in workload["spec"]) != is_scaled, workload["metadata"]["name"]
    for scaler in rendered.of_kind("ScaledObject"):
        assert 1 <= scaler["spec"]["minReplicaCount"] < scaler["spec"]["maxReplicaCount"]
        for trigger in scaler["spec"]["triggers"]:
            rendered.one("TriggerAuthentication", trigger["authenticationRef"]["name"])


def _components(rendered: Rendered) -> str:
    return "keda podmonitor" if rendered.name == "gpu-everything" else rendered.name


def test_every_reference_resolves(rendered: Rendered) -> None:
    generated = {s["metadata"]["name"]: set(s["data"]) for s in rendered.of_kind("Secret")}
    secrets = generated or PROVIDED
    maps = {m["metadata"]["name"]: set(m["data"]) for m in rendered.of_kind("ConfigMap")}
    claims = {c["metadata"]["name"] for c in rendered.of_kind("PersistentVolumeClaim")}
    accounts = {a["metadata"]["name"] for a in rendered.of_kind("ServiceAccount")}
    for workload in rendered.workloads:
        pod = pod_of(workload)
        assert pod["serviceAccountName"] in accounts
        for volume in pod["volumes"]:
            for secret, keys in _secrets_of(volume):
                assert keys, f"{secret}: name the keys, so that no other one is mounted"
                assert keys <= secrets[secret], f"{secret} has no {keys - secrets[secret]}"
            if config := volume.get("configMap"):
                assert config["name"] in maps
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims
    for authentication in rendered.of_kind("TriggerAuthentication"):
        for reference in authentication["spec"]["secretTargetRef"]:
            assert reference["key"] in secrets[reference["name"]]


def _secrets_of(volume: Object) -> Iterator[tuple[str, set[str]]]:
    if secret := volume.get("secret"):
        yield secret["secretName"], {item["key"] for item in secret.get("items", [])}
    for source in volume.get("projected", {}).get("sources", []):
        assert set(source) == {"secret"}
        yield source["secret"]["name"], {item["key"] for item in source["secret"].get("items", [])}


def test_secrets_appear_only_in_secrets(rendered: Rendered) -> None:
    for thing in rendered.objects:
        if thing["kind"] == "Secret":
            continue
        assert not [value for _, value in strings(thing) if "made-up" in value]
        for workload in rendered.workloads:
            for container in containers_of(workload):
                assert not [e for e in container.get("env", []) if "valueFrom" in e]


def test_volumes_and_mounts_match(rendered: Rendered) -> None:
    for workload in rendered.workloads:
        templates = workload["spec"].get("volumeClaimTemplates", [])
        volumes = {v["name"] for v in pod_of(workload)["volumes"]}
        volumes |= {template["metadata"]["name"] for template in templates}
        mounted = {m["name"] for c in containers_of(workload) for m in c["volumeMounts"]}
        assert mounted == volumes, workload["metadata"]["name"]
        for volume in pod_of(workload)["volumes"]:
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"], volume["name"]


def test_pods_meet_the_restricted_standard(rendered: Rendered) -> None:
    for workload in rendered.workloads:
        pod = pod_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert (
            pod["enableServiceLinks"] is False
        )  # a Service named forethought-x would set settings
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (
            True,
            10001,
            10001,
        )
        assert security["fsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        for container in containers_of(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
            assert not [port for port in container.get("ports", []) if "hostPort" in port]
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    (account,) = rendered.of_kind("ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_only_the_necessary_paths_are_writable(rendered: Rendered) -> None:
    expected = {
        "redis": {"/data", "/tmp"},
        "rollout": {"/tmp", "/cache", "/dev/shm"},
        "reward": {"/tmp", "/cache", "/dev/shm"},
        "learner": {"/tmp", "/cache", "/dev/shm", "/runs"},
    }
    for workload in rendered.workloads:
        mounts = main_container(workload)["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        assert writable == expected[workload["metadata"]["name"]]
        memory = {v["name"] for v in pod_of(workload)["volumes"] if _in_memory(v)}
        assert {m["name"] for m in mounts if m["mountPath"] == "/dev/shm"} <= memory


def _in_memory(volume: Object) -> bool:
    return bool(volume.get("emptyDir", {}).get("medium") == "Memory")


def test_only_the_learner_has_persistent_volumes(rendered: Rendered) -> None:
    for workload in rendered.workloads:
        claims = {
            v["persistentVolumeClaim"]["claimName"]
            for v in pod_of(workload)["volumes"]
            if "persistentVolumeClaim" in v
        }
        is_learner = workload["metadata"]["name"] == "learner"
        assert claims == ({"models", "runs"} if is_learner else set())
    (template,) = rendered.workload("redis")["spec"]["volumeClaimTemplates"]
    assert template["metadata"]["name"] == "data"


def test_the_demo_fits_a_small_node(all_rendered: dict[str, Rendered]) -> None:
    """Two cores, of which the node needs half; three rollout replicas."""
    replicas = {"rollout": 3}
    total_millicores = 0
    for workload in all_rendered["cpu"].workloads:
        (one,) = [c["resources"]["requests"]["cpu"] for c in pod_of(workload)["containers"]]
        assert one.endswith("m")
        total_millicores += replicas.get(workload["metadata"]["name"], 1) * int(one[:-1])
    assert total_millicores <= 1000


def test_names_are_plain_or_hashed() -> None:
    assert plain_name({"kind": "Secret", "metadata": {"name": "a-b-0123456789"}}) == "a-b"
    assert plain_name({"kind": "Service", "metadata": {"name": "a-0123456789"}}) == "a-0123456789"
