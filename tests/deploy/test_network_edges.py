"""The network policies open exactly the connections that the processes make, at both ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.rendering import NAMESPACE, Object, Rendered, labels_of, main_container
from tests.deploy.test_manifests import matches

pytestmark = pytest.mark.deploy

INTERNAL = {
    ("learner", "redis", 6379),
    ("rollout", "redis", 6379),
    ("reward", "redis", 6379),
    ("learner", "rollout", 50051),
    ("learner", "reward", 50051),
}
OUTSIDE = {
    ("forethought-client", "reward", 8080),
    ("forethought-client", "reward", 50051),
    ("forethought-monitoring", "rollout", 9100),
    ("forethought-monitoring", "reward", 9100),
    ("forethought-monitoring", "learner", 9100),
}
"""Peers by the label that admits them."""

COMPONENTS = {"keda": ("keda", "redis", 6379), "ingress": ("ingress-nginx", "reward", 8080)}


def policies_of(rendered: Rendered, component: str, direction: str) -> Iterator[Object]:
    """The rules of all policies that select a component's pods, in one direction."""
    labels = labels_of(rendered.workload(component))
    for policy in rendered.of_kind("NetworkPolicy"):
        spec = policy["spec"]
        assert set(spec) & {"ingress", "egress"} <= {kind.lower() for kind in spec["policyTypes"]}
        if matches(spec["podSelector"], labels):
            yield from spec.get(direction, [])


def opened(rendered: Rendered, component: str, direction: str) -> set[tuple[str, int]]:
    """(peer, port) of the other side: Forethought's pods by component, others by the admitting label."""
    found = set()
    for rule in policies_of(rendered, component, direction):
        assert rule["ports"], "a rule without ports opens all"
        peers = rule["from" if direction == "ingress" else "to"]
        assert peers, "a rule without peers opens to all"
        for peer in peers:
            found |= {
                (who, port["port"]) for who in names(rendered, peer) for port in rule["ports"]
            }
    return found


def names(rendered: Rendered, peer: Object) -> list[str]:
    if "ipBlock" in peer:
        return [peer["ipBlock"]["cidr"]]
    space, pods = peer.get("namespaceSelector"), peer.get("podSelector", {})
    if space is None:
        ours = [w for w in rendered.workloads if matches(pods, labels_of(w))]
        assert ours, f"no pod has the labels {pods}"
        return [w["metadata"]["name"] for w in ours]
    labels = space.get("matchLabels") or pods["matchLabels"]
    name = labels.get("kubernetes.io/metadata.name")
    return [name] if name else list(labels)


def test_everything_else_is_denied(rendered: Rendered) -> None:
    (deny,) = [
        policy["spec"]
        for policy in rendered.of_kind("NetworkPolicy")
        if policy["metadata"]["name"] == "default-deny"
    ]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_exactly_the_used_connections_are_allowed(rendered: Rendered) -> None:
    ours = [workload["metadata"]["name"] for workload in rendered.workloads]
    inward = {(who, to, port) for to in ours for who, port in opened(rendered, to, "ingress")}
    outward = {
        (who, to, port)
        for who in ours
        for to, port in opened(rendered, who, "egress")
        if port != 53
    }
    extra = {
        edge
        for component, edge in COMPONENTS.items()
        if component in rendered.name or rendered.name == "gpu-everything"
    }
    assert outward == INTERNAL
    assert inward == INTERNAL | OUTSIDE | extra


def test_every_pod_may_resolve_names(rendered: Rendered) -> None:
    for workload in rendered.workloads:
        asked = opened(rendered, workload["metadata"]["name"], "egress")
        assert {("kube-system", 53), ("169.254.20.10/32", 53)} <= asked


def test_open_ports_have_listeners(rendered: Rendered) -> None:
    for workload in rendered.workloads:
        name = workload["metadata"]["name"]
        listening = {port["containerPort"] for port in main_container(workload)["ports"]}
        asked = {port for _, port in opened(rendered, name, "ingress")}
        assert asked <= listening


def test_the_scaler_queries_the_redis_of_this_namespace(rendered: Rendered) -> None:
    for scaler in rendered.of_kind("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            host, _, port = trigger["metadata"]["address"].partition(":")
            service = rendered.one("Service", "redis")
            assert host == f"redis.{NAMESPACE}.svc.cluster.local"
            assert int(port) == service["spec"]["ports"][0]["port"]
