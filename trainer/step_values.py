"""The values of one step of a run with thoughts, as ``metrics.jsonl`` and the alarms know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forethought.types import ScoredRollout, attempt_of
from trainer.metrics.step_log import rollout_metrics
from trainer.train_step import StepReport


def step_values(results: Sequence[ScoredRollout], report: StepReport) -> dict[str, Any]:
    """The values of a step: its optimizer's, its rollouts', and what became of its tasks."""
    result = report.result
    failures = [r.failure for r in results if r.failure is not None]
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "learning_rate": result.learning_rate,
        "clipped_share": result.clipped_share,
        "ratio_max": result.ratio_max,
        "effective_sample_share": result.effective_sample_share,
        "skipped": result.skipped,
        **rollout_metrics(results, report.version),
        **report.metrics,
        "tasks_trained": len(results) - len(failures),
        "tasks_failed": len(failures),
        "failed_share": len(failures) / len(results),
        **({"failure": failures[0]} if failures else {}),
        "tasks_replaced": sum(attempt_of(r.rollout.task.task_id) > 0 for r in results),
    }
