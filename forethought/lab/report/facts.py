"""The identity and task counts of runs, as rows of text.

Design: a row is a name and one text per run, so that the page is independent of the contents; unknown
values are a dash. Counts come from the summary, or for a run without one from the journal's audit, which
counts the same over the batches recorded so far. The price is that values reach the page as text only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.lab.report.curves import ends, points
from forethought.lab.report.numbers import duration, number, signed
from forethought.lab.report.record import RunRecord

NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class FactRow:
    """A name and its text for every run.

    Example:
        ``FactRow("Seed", ("0", "1"))``
    """

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """A replica, the version it served last and its number of tasks in the journal.

    Example:
        ``ReplicaRow("rollout-a1", "rollout", "policy 60", "1,920")``
    """

    replica: str
    kind: str
    serving: str
    tasks: str


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint, its size on disk and its path.

    Example:
        ``CheckpointRow("step 60", "1.4 MiB", "/runs/rlp/checkpoints/step-000060")``
    """

    name: str
    size: str
    path: str


def identity_rows(runs: Sequence[RunRecord]) -> list[FactRow]:
    """The identity and result of each run; rows unknown to all runs are omitted."""
    rows = [FactRow(name, tuple(of(run) for run in runs)) for name, of in _IDENTITY]
    return [row for row in rows if any(value != NONE for value in row.values)]


def work_rows(runs: Sequence[RunRecord]) -> list[FactRow]:
    """The task counts of each run."""
    rows = [FactRow(name, tuple(_count(run, key) for run in runs)) for name, key in _COUNTS]
    return [row for row in rows if any(value != NONE for value in row.values)]


def replica_rows(run: RunRecord) -> list[ReplicaRow]:
    """Every replica named by the summary or the journal."""
    replicas = run.summary.get("replicas")
    registered: dict[str, Any] = replicas if isinstance(replicas, dict) else {}
    names = sorted({*registered, *run.review.replicas})
    return [_replica(name, registered.get(name), run.review.replicas.get(name)) for name in names]


def checkpoint_rows(run: RunRecord) -> list[CheckpointRow]:
    """Complete checkpoints, oldest first."""
    return [
        CheckpointRow(f"step {int(path.name.removeprefix('step-'))}", _size(path), str(path))
        for path in run.directory.complete_checkpoints()
    ]


def _status(run: RunRecord) -> str:
    return run.status


def _failure(run: RunRecord) -> str:
    return run.failure or NONE


def _warmup(run: RunRecord) -> str:
    """Whether the think markers were warmed up, and what the model's thoughts were worth around it."""
    outcome = run.directory.read_warmup()
    before, after = (_worth(outcome.get(when)) for when in ("before", "after"))
    if not before:
        return NONE
    if after:
        return (
            f"{number(outcome.get('steps')) or 0:.0f} steps: {before} \N{RIGHTWARDS ARROW} {after}"
        )
    return f"{'not complete' if outcome.get('needed') else 'not needed'}: {before}"


def _worth(measured: Any) -> str:
    if not isinstance(measured, dict):
        return ""
    gain, closed = number(measured.get("information_gain")), number(measured.get("closed_share"))
    return "" if gain is None or closed is None else f"{signed(gain)} nats, {closed:.0%} closed"


def _objective(run: RunRecord) -> str:
    name = str(run.setting("objective", "name", NONE))
    parameters = run.setting("objective", "parameters", {})
    words = (
        [f"{key} = {_shown_value(value)}" for key, value in parameters.items()]
        if parameters
        else []
    )
    return f"{name} ({', '.join(words)})" if words else name


def _shown_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _learning(run: RunRecord) -> str:
    if not run.config or run.setting("objective", "name") == "ntp":
        return "next-token loss" if run.config else NONE
    return str(run.setting("learner", "loss", "ppo_clip"))


def _model(run: RunRecord) -> str:
    path = str(run.setting("model", "path", "") or "a small base trained by up")
    if revision := run.setting("model", "revision", ""):
        path = f"{path}@{revision}"
    return f"{path} ({run.setting('model', 'dtype', '?')})" if run.config else NONE


def _corpus(run: RunRecord) -> str:
    sources = run.setting("corpus", "sources", [])
    paths = [run.setting("corpus", "path", "")]
    paths += [source.get("path", "") for source in sources if isinstance(source, dict)]
    return ", ".join(str(path) for path in paths if path) or NONE


def _seed(run: RunRecord) -> str:
    return str(run.setting("run", "seed", NONE))


def _steps(run: RunRecord) -> str:
    wanted = run.setting("learner", "steps")
    return f"{run.last_step:,}" + (f" of {wanted:,}" if isinstance(wanted, int) else "")


def _versions(run: RunRecord) -> str:
    last = run.rows[-1] if run.rows else {}
    version, epoch = (number(last.get(key)) for key in ("version", "epoch"))
    if version is None:
        return NONE
    return f"{version:.0f}" + ("" if epoch is None else f", of epoch {epoch:.0f}")


def _took(run: RunRecord) -> str:
    seconds = number(run.summary.get("seconds"))
    if seconds is not None and run.status != "ended without a summary":
        return duration(seconds)
    times = points(run.rows, "time_unix_s")[1]
    return f"{duration(times[-1] - times[0])} from first to last step" if len(times) > 1 else NONE


def _tokens(run: RunRecord) -> str:
    tokens = points(run.rows, "tokens")[1]
    return f"{tokens[-1]:,.0f}" if tokens else NONE


def _speed(run: RunRecord) -> str:
    speeds = points(run.rows, "tokens_per_s")[1]
    return f"{sorted(speeds)[len(speeds) // 2]:,.0f} tokens/s (median step)" if speeds else NONE


def _trend(key: str) -> Callable[[RunRecord], str]:
    def of(run: RunRecord) -> str:
        found = ends(points(run.rows, key)[1])
        return f"{signed(found[0])} → {signed(found[1])}" if found else NONE

    return of


def _software(run: RunRecord) -> str:
    latest = run.directory.latest_checkpoint()
    try:
        read = json.loads((latest / "model" / "config.json").read_text()) if latest else {}
    except (OSError, ValueError):
        return NONE
    version = read.get("transformers_version") if isinstance(read, dict) else None
    return f"transformers {version}" if version else NONE


_IDENTITY: tuple[tuple[str, Callable[[RunRecord], str]], ...] = (
    ("Status", _status),
    ("Failure", _failure),
    ("Objective", _objective),
    ("Loss", _learning),
    ("Model", _model),
    ("Warm-up", _warmup),
    ("Corpus", _corpus),
    ("Seed", _seed),
    ("Steps", _steps),
    ("Policy version", _versions),
    ("Took", _took),
    ("Trained tokens", _tokens),
    ("Speed", _speed),
    ("Reward", _trend("reward_mean")),
    ("Information gain", _trend("information_gain")),
    ("Next-token loss", _trend("nll")),
    ("Checkpoint written by", _software),
)

# Name on the page, key of the summary; the audit's is the same with num_ for tasks_.
_COUNTS = (
    ("Admitted", "tasks_admitted"),
    ("Trained", "tasks_trained"),
    ("Failed", "tasks_failed"),
    ("Replaced", "tasks_replaced"),
    ("Lost", "lost"),
    ("Duplicated", "duplicated"),
    ("Results ignored", "results_ignored"),
)


def _count(run: RunRecord, key: str) -> str:
    current = run.summary if run.status in ("done", "stopped", "failed") else {}
    last = run.rows[-1] if run.rows else {}
    audited = run.review.audit.get(f"num_{key.removeprefix('tasks_')}")
    for value in (current.get(key), audited, last.get(key) if key == "results_ignored" else None):
        if number(value) is not None:
            return f"{value:,}"
    return NONE


def _replica(name: str, registered: Any, worked: dict[str, Any] | None) -> ReplicaRow:
    entry = registered if isinstance(registered, dict) else {}
    worked = worked or {}
    serving = entry.get("serving")
    if isinstance(serving, dict):
        shown = ", ".join(f"{model} {_version(pair)}" for model, pair in sorted(serving.items()))
    else:
        version = worked.get("version")
        shown = NONE if version is None else f"policy {version} in its last task"
    kind = str(entry.get("kind") or worked.get("kind") or NONE)
    tasks = worked.get("tasks")
    return ReplicaRow(name, kind, shown, NONE if tasks is None else f"{tasks:,}")


def _version(pair: Any) -> str:
    return str(pair[1]) if isinstance(pair, list) and len(pair) == 2 else str(pair)


def _size(path: Path) -> str:
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{num_bytes / 2**20:,.1f} MiB"
