"""The lines that ``up`` prints at startup and at the end, with commands to copy.

Design: plain lines, never wrapped or boxed, so that they can be copied.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from forethought.cli.plan import Plan
from forethought.cli.progress import Metrics
from forethought.config.sections import AuthSection
from forethought.lab.report.numbers import duration
from forethought.run.directory import RunDirectory

_COUNTS = (
    "steps",
    "policy_version",
    "tasks_admitted",
    "tasks_trained",
    "tasks_failed",
    "lost",
    "duplicated",
)
_TRENDS = (("reward_mean", "reward"), ("information_gain", "gain"), ("nll", "loss"))


def opening_lines(plan: Plan, redis_url: str) -> list[str]:
    """Locations and addresses of the run, and commands to join it."""
    from forethought.queue.redis_link import hide_password

    run, url = plan.settings.run, hide_password(redis_url)
    lines = [
        f"run        {run.name} in {run.directory}",
        f"redis      {url}",
        f"logs       {plan.logs}",
    ]
    if plan.thinks:
        # Quoted manually: a masked password leaves *** in the URL, which shlex would quote.
        replica = f"forethought serve rollout --redis-url {url} --run {run.name}"
        lines.append(f"replica    {replica}{_auth_override(plan.settings.auth)}")
    lines.append(f"status     forethought status --redis-url {url} --run {run.name} --watch")
    if plan.reward_url is not None:
        settings = plan.settings
        lines += _reward_lines(plan.reward_url, settings.objective.name, settings.auth)
    return [*lines, *(f"note       {note}" for note in plan.notes), ""]


def closing_lines(
    directory: RunDirectory,
    summary: Mapping[str, Any] | None,
    stopped: bool,
    failed: bool = False,
) -> list[str]:
    """The result of the run, the location of the model and how to load it, or why the run failed."""
    lines = ["", *_table(summary, directory.read_metrics())]
    latest, failure = directory.latest_checkpoint(), (summary or {}).get("failure")
    if failure or (failed and latest is not None):
        reason = [f"{'failed':<16} {failure}"] if failure else []
        return [*lines, *reason, f"{'checkpoint':<16} {latest}"]
    return [*lines, *model_lines(directory, stopped)]


def model_lines(directory: RunDirectory, stopped: bool = False) -> list[str]:
    """The location of the newest model and how to load it."""
    latest = directory.latest_checkpoint()
    if latest is None:
        return [f"no checkpoint was written; the logs are in {directory.root / 'logs'}"]
    model = json.dumps(str(latest / "model"))
    return [
        f"checkpoint       {latest}",
        *(["to resume        run the same command again"] if stopped else []),
        "to load it:",
        "  from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"  model = AutoModelForCausalLM.from_pretrained({model})",
        f"  tokenizer = AutoTokenizer.from_pretrained({model})",
    ]


def _auth_override(auth: AuthSection) -> str:
    """The auth override for a replica started by hand; a token in the environment needs none."""
    if auth.open:
        return " auth.open=true"
    return f" auth.token_file={shlex.quote(auth.token_file)}" if auth.token_file else ""


def _curl_header(auth: AuthSection) -> list[str]:
    """The curl header line that sends the run's token, without printing the token."""
    if auth.open:
        return []
    first_line = f"$(grep -m 1 '^[^#]' {shlex.quote(auth.token_file)})"
    token = first_line if auth.token_file else "$FORETHOUGHT_AUTH_TOKEN"
    return [f'             -H "Authorization: Bearer {token}" \\']


def _reward_lines(url: str, objective: str, auth: AuthSection) -> list[str]:
    texts = {"context": "two and two make", "target": " four", "thoughts": ["2 + 2 = 4", "hm"]}
    body = json.dumps({"objective": objective, "items": [{"id": "a", **texts}]})
    return [
        f"reward     {url}/v1/score, documented at {url}/docs; once it is ready:",
        f"           curl -s {url}/v1/score -H 'content-type: application/json' \\",
        *_curl_header(auth),
        f"             -d {shlex.quote(body)}",
    ]


def _table(summary: Mapping[str, Any] | None, metrics: list[Metrics]) -> list[str]:
    rows: list[tuple[str, str]] = []
    if summary is not None:
        rows += [
            (name.replace("_", " "), str(summary[name])) for name in _COUNTS if name in summary
        ]
    rows += [row for key, label in _TRENDS for row in _trend(metrics, key, label)]
    if summary is not None:
        replicas = summary.get("replicas") or {}
        rows += [(f"  {name}", f"serving {_serving(of)}") for name, of in sorted(replicas.items())]
        if "seconds" in summary:
            rows.append(("took", duration(float(summary["seconds"]))))
    return [f"{label:<16} {value}" for label, value in rows]


def _trend(metrics: list[Metrics], key: str, label: str) -> list[tuple[str, str]]:
    """Means over the first and last tenth of the steps: a single step is noisy."""
    values = [float(line[key]) for line in metrics if line.get(key) is not None]
    if not values:
        return []
    share = max(1, len(values) // 10)
    first, last = sum(values[:share]) / share, sum(values[-share:]) / share
    return [(label, f"{first:.3f} -> {last:.3f} (mean of the first and the last {share} steps)")]


def _serving(replica: Any) -> str:
    serving = replica.get("serving", replica) if isinstance(replica, Mapping) else replica
    return json.dumps(serving) if isinstance(serving, Mapping | list) else str(serving)
