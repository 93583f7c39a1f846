"""A review of a run from its journal and metrics.

    alarms     in step order, with the remedy
    audit      admitted, trained, failed, lost and duplicated tasks of the batches still in the journal
    failures   number of failed tasks per reason
    replicas   by id: kind, tasks, and the newest policy version in its work
    samples    some positions of the first and the last batch, with all their thoughts

Design: the whole journal is read, with one batch in memory at a time, because failure reasons and replicas
are recorded nowhere else. The price is a second or two per thousand batches. Samples are the first
positions of their batches, so they are not cherry-picked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forethought.run.alarms import Alarms
from forethought.run.directory import RunDirectory
from forethought.run.journal import JournalRecord, audit, read_journal
from forethought.types import ScoredRollout, attempt_of

SAMPLES_PER_BATCH = 2


@dataclass(slots=True)
class Review:
    """The collected findings; ``problems`` are sentences about files that could not be read.

    Example:
        ``review(RunDirectory(Path("runs/demo/rlp"))).failures["out of memory"]``
    """

    alarms: list[dict[str, Any]] = field(default_factory=list)
    audit: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def review(directory: RunDirectory) -> Review:
    """Read the files that exist; if one turns out damaged, what was read before it is kept."""
    found = Review()
    parts: tuple[tuple[str, Callable[[], None]], ...] = (
        ("metrics.jsonl", lambda: _read_metrics(directory, found)),
        ("The journal", lambda: _read(directory.journal, found)),
    )
    for name, read in parts:
        try:
            read()
        except Exception as error:  # a damaged file can raise anything; still show the rest
            found.problems.append(f"{name} cannot be read: {type(error).__name__}: {error}.")
    return found


def _read_metrics(directory: RunDirectory, found: Review) -> None:
    found.alarms.extend(_alarms(directory.read_metrics()))
    if num_damaged := directory.num_damaged_metrics():
        found.problems.append(
            f"metrics.jsonl cannot be read in full: {num_damaged} of its lines hold no step (a power "
            "cut leaves such lines) and are left out."
        )


def _alarms(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    alarms = Alarms()
    for row in rows:
        for alarm in alarms.see(row):
            yield {"step": row.get("step"), **asdict(alarm)}


def _read(journal: Path, found: Review) -> None:
    if not journal.is_dir():  # next-token runs keep no journal
        return
    first: JournalRecord | None = None
    record: JournalRecord | None = None
    for record in read_journal(journal, lambda text: _note_damage(found, text)):
        first = first or record
        _count(record, found)
    if first is None or record is None:
        return
    ends = (first,) if record.batch == first.batch else (first, record)
    found.samples = [sample for end in ends for sample in _samples(end)]
    size = _batch_tasks(first)
    ids = ((record.batch + 1) * size, first.batch * size)
    found.audit = asdict(audit(journal, *ids, on_damage=lambda text: None))  # noted above


def _note_damage(found: Review, text: str) -> None:
    found.problems.append(f"{text[0].upper()}{text[1:]}.")


def _batch_tasks(record: JournalRecord) -> int:
    """N of the run: the tasks of a batch without its replacements, which have separate ids."""
    return sum(attempt_of(result.rollout.task.task_id) == 0 for result in record.results)


def _count(record: JournalRecord, found: Review) -> None:
    for result in record.results:
        if result.failure is not None:
            found.failures[result.failure] = found.failures.get(result.failure, 0) + 1
        spans = [
            span.version
            for thoughts_G in result.rollout.thoughts_KG
            for thought in thoughts_G
            for span in thought.version_spans
        ]
        _work(found, result.rollout.replica, "rollout", max(spans, default=None))
        scored = result.policy_version if result.error is None else None
        _work(found, result.replica, "reward", scored)


def _work(found: Review, replica: str, kind: str, version: int | None) -> None:
    if not replica:
        return
    known = found.replicas.setdefault(replica, {"kind": kind, "tasks": 0, "version": None})
    known["tasks"] += 1
    if version is not None:
        known["version"] = max(version, known["version"] or 0)


def _samples(record: JournalRecord) -> list[dict[str, Any]]:
    valid = [result for result in record.results if result.failure is None]
    with_thoughts = [result for result in valid if result.rollout.thoughts_KG]
    return [_sample(record, result) for result in with_thoughts[:SAMPLES_PER_BATCH]]


def _sample(record: JournalRecord, result: ScoredRollout) -> dict[str, Any]:
    """The first position of a task, as token ids: the caller has the tokenizer."""
    task, thoughts_G = result.rollout.task, result.rollout.thoughts_KG[0]
    position = task.positions_K[0]
    return {
        "batch": record.batch,
        "document": task.document.document_id,
        "index": position.index,
        "context_ids": task.document.token_ids_N[: position.index],
        "target_ids": position.target_ids_H,
        # Without likelihoods, the baseline log-prob is a meaningless 0.
        "baseline_logprob": result.baseline_logprobs_K[0] if result.policy_logprobs_KG[0] else None,
        "thoughts": [
            {
                "thought_ids": thought.thought_ids,
                "prediction_ids": thought.prediction_ids,
                "closed": thought.closed,
                "reward": result.rewards_KG[0][g],
                "policy_logprob": _nth(result.policy_logprobs_KG[0], g),
            }
            for g, thought in enumerate(thoughts_G)
        ],
    }


def _nth(values: Sequence[float], index: int) -> float | None:
    return values[index] if index < len(values) else None
