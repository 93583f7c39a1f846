"""A deployment of overlays/cpu on the cluster of KUBECONFIG, and the operations of its tests.

Everything is applied as shipped, except what an old or bare cluster lacks: unknown API versions
are replaced by known ones, and without a storage class volumes are created on its node.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import NAMESPACE, SECRET_FILES, Object, copy_sources, kustomize, render

OLDER = {"policy/v1": "policy/v1beta1"}
CLIENTS = "default"
"""The namespace of the reward service's external client."""

_POLL_S = 2.0
_WHO_WORKED = """
import collections, json, pathlib
from forethought.run.journal import read_journal
records = list(read_journal(pathlib.Path("/runs/default/journal")))
names = collections.Counter(r.rollout.replica for record in records for r in record.results)
ids = [r.rollout.task.task_id for record in records for r in record.results]
print(json.dumps({"names": names, "ids": ids, "epochs": [r.epoch for r in records]}))
"""
_ASK = """
import json, os, sys, urllib.error, urllib.request
path, token, body = json.load(sys.stdin)
headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
url = f"http://reward.forethought.svc.cluster.local:8080{path}"
request = urllib.request.Request(url, json.dumps(body).encode(), headers)
try:
    with urllib.request.urlopen(request, timeout=30) as reply:
        print(json.dumps([reply.status, json.load(reply)]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.load(error)]))
"""


def kubectl(*words: str, given: str | None = None, timeout_s: float = 120.0) -> str:
    """Run kubectl; returns its output. A failure raises with that output."""
    command = ["kubectl", f"--request-timeout={timeout_s:.0f}s", *words]
    run = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=timeout_s + 10
    )
    if run.returncode:
        raise RuntimeError(f"kubectl {' '.join(words)}: {run.stderr.strip()}")
    return run.stdout


def eventually(what: str, look: Callable[[], Any], timeout_s: float) -> Any:
    """Poll until ``look`` returns a true value, and print how long it took."""
    started_s = time.monotonic()
    trouble = ""
    while time.monotonic() < started_s + timeout_s:
        try:
            if value := look():
                print(f"  {time.monotonic() - started_s:6.1f} s  {what}", flush=True)
                return value
        except RuntimeError as error:  # a pod that is being replaced does not answer
            trouble = str(error)
        time.sleep(_POLL_S)
    pytest.fail(f"{what}: not within {timeout_s:.0f} s; {trouble}")


class Deployment:
    """The applied overlay; leaving the context removes everything it created."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tokens = {name: secrets.token_hex(16) for name in SECRET_FILES}
        self._on_node = f"/var/tmp/forethought-e2e-{secrets.token_hex(4)}"
        self._volumes: list[str] = []

    def __enter__(self) -> Deployment:
        there = kubectl("get", "namespaces", "-o", "name").split()
        assert f"namespace/{NAMESPACE}" not in there, "another deployment is there; delete it first"
        try:
            self._start()
        except BaseException as error:
            self.__exit__(error)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            print(self.describe(), flush=True)
        kubectl("delete", "pod", "reward-client", "-n", CLIENTS, "--ignore-not-found", "--now")
        kubectl("delete", "all", "--all", "-n", NAMESPACE, timeout_s=300)
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_s=300)
        if self._volumes:
            kubectl("delete", "persistentvolume", *self._volumes)
            self._on_the_node(f"rm -rf {self._on_node}/*")

    def describe(self) -> str:
        """The state of the deployment, for a failed test."""
        parts = [kubectl("get", "pods", "-n", NAMESPACE, "-o", "wide")]
        parts.append(kubectl("get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"))
        for pod in self.pods():
            name = pod["metadata"]["name"]
            words = ("logs", name, "-n", NAMESPACE, "--all-containers", "--tail=30")
            try:
                parts.append(f"--- {name}\n{kubectl(*words)}")
            except RuntimeError as error:
                parts.append(f"--- {error}")
        return "\n".join(parts)

    def pods(self, component: str = "") -> list[Object]:
        """Existing pods that are not terminating."""
        selector = f"app.kubernetes.io/component={component}" if component else ""
        words = ("get", "pods", "-n", NAMESPACE, "-o", "json", "-l", selector)
        found: list[Object] = json.loads(kubectl(*words))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, component: str) -> list[str]:
        """The names of a component's pods whose readiness probe succeeds."""
        return [pod["metadata"]["name"] for pod in self.pods(component) if _is_ready(pod)]

    def restarts(self) -> int:
        """Number of container restarts by the kubelet."""
        statuses = [s for pod in self.pods() for s in pod["status"]["containerStatuses"]]
        return sum(status["restartCount"] for status in statuses)

    def scale(self, count: int) -> None:
        """Set the number of rollout replicas."""
        kubectl("scale", "deployment/rollout", "-n", NAMESPACE, f"--replicas={count}")

    def delete(self, pod: str, *words: str) -> None:
        """Delete a pod and wait until it is gone."""
        kubectl("delete", "pod", pod, "-n", NAMESPACE, *words, timeout_s=180)

    def add_client_token(self, token: str) -> None:
        """Add a line to the client token file, by applying the overlay again."""
        self.tokens["client-token"] += f"\n{token}"
        self._write_secrets()
        self._apply([o for o in self._objects() if o["kind"] == "Secret"])

    def set_steps(self, count: int) -> None:
        """Set the learner's last step, as a user would."""
        word = f"FORETHOUGHT_LEARNER_STEPS={count}"
        kubectl("set", "env", "statefulset/learner", "-n", NAMESPACE, "-c", "learner", word)

    def in_learner(self, *command: str) -> str:
        """The output of a command in the learner's pod."""
        return kubectl("exec", "learner-0", "-n", NAMESPACE, "-c", "learner", "--", *command)

    def metrics(self) -> list[Object]:
        """The run's metrics so far, one line per step."""
        text = self.in_learner("cat", "/runs/default/metrics.jsonl")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def num_steps(self) -> int:
        """Steps finished."""
        return int(self.metrics()[-1]["step"])

    def summary(self) -> Object:
        """The summary of the run."""
        summary: Object = json.loads(self.in_learner("cat", "/runs/default/summary.json"))
        return summary

    def journal(self) -> Object:
        """From the journal: results by replica, trained task ids, the epoch of each batch."""
        journal: Object = json.loads(self.in_learner("python", "-c", _WHO_WORKED))
        return journal

    def workers(self) -> set[str]:
        """The rollout pods whose results were trained on; a replica's id contains the pod's name."""
        return {
            name.removeprefix("rollout-").rpartition("-")[0] for name in self.journal()["names"]
        }

    def ask(self, path: str, body: Object, token: str = "") -> tuple[int, Object]:
        """(status, answer) of the reward service to a request from a pod in another namespace."""
        words = ("exec", "-i", "reward-client", "-n", CLIENTS, "--", "python", "-c", _ASK)
        status, answer = json.loads(kubectl(*words, given=json.dumps([path, token, body])))
        return status, answer

    def _start(self) -> None:
        copy_sources(self._folder)
        self._write_secrets()
        objects = self._objects()
        if not kubectl("get", "storageclass", "-o", "name").strip():
            self._make_volumes(objects)
        self._apply(objects)
        self._start_client()

    def _objects(self) -> list[Object]:
        command = kustomize()
        assert command is not None
        return list(yaml.safe_load_all(render(command, self._folder / "k8s" / "overlays" / "cpu")))

    def _write_secrets(self) -> None:
        for name, value in self.tokens.items():
            (self._folder / "secrets" / name).write_text(f"{value}\n", encoding="utf-8")

    def _apply(self, objects: Sequence[Object]) -> None:
        known = kubectl("api-versions").split()
        for thing in objects:
            if thing["apiVersion"] not in known:
                print(f"  {thing['kind']}: {thing['apiVersion']} is not known here", flush=True)
                thing["apiVersion"] = OLDER[thing["apiVersion"]]
        kubectl("apply", "-f", "-", given=yaml.safe_dump_all(objects))

    def _start_client(self) -> None:
        kubectl(
            *("run", "reward-client", "-n", CLIENTS, "--image=forethought-reward:cpu"),
            *("--labels=forethought-client=true", "--image-pull-policy=IfNotPresent"),
            *("--restart=Never", "--command", "--", "sleep", "7200"),
        )

    def _make_volumes(self, objects: Sequence[Object]) -> None:
        """One per claim, on the node and writable by the pods' user."""
        print("  no storage class: volumes are made on the node", flush=True)
        claims = [o for o in objects if o["kind"] == "PersistentVolumeClaim"]
        names = [claim["metadata"]["name"] for claim in claims] + ["data-redis-0"]
        folders = " ".join(f"{self._on_node}/{name}" for name in names)
        self._on_the_node(f"mkdir -p {folders} && chown 10001:10001 {folders}")
        volumes = [
            _volume(f"{Path(self._on_node).name}-{n}", f"{self._on_node}/{n}", n) for n in names
        ]
        self._volumes = [volume["metadata"]["name"] for volume in volumes]
        kubectl("apply", "-f", "-", given=yaml.safe_dump_all(volumes))

    def _on_the_node(self, command: str) -> None:
        """Run a shell command as root with the node's /var/tmp."""
        name = f"forethought-e2e-{secrets.token_hex(3)}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": CLIENTS},
            "spec": {
                "restartPolicy": "Never",
                "containers": [
                    {
                        "name": "shell",
                        "image": "forethought-trainer:cpu",
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", command],
                        "securityContext": {"runAsUser": 0},
                        "volumeMounts": [{"name": "tmp", "mountPath": "/var/tmp"}],
                    }
                ],
                "volumes": [{"name": "tmp", "hostPath": {"path": "/var/tmp"}}],
            },
        }
        kubectl("apply", "-f", "-", given=json.dumps(pod))
        done = ("get", "pod", name, "-n", CLIENTS, "-o", "jsonpath={.status.phase}")
        eventually(f"on the node: {command[:20]}…", lambda: kubectl(*done) == "Succeeded", 120)
        kubectl("delete", "pod", name, "-n", CLIENTS, "--now")


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _volume(name: str, path: str, claim: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"name": claim, "namespace": NAMESPACE},
            "hostPath": {"path": path},
        },
    }
