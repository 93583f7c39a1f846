"""The run without rollouts that an objective asks for: plain text, or the warm-up of think markers."""

from __future__ import annotations

from forethought.objectives import Mode
from trainer.assembly import Assembly
from trainer.next_token_run import NextTokenRun
from trainer.warmup.goal import WarmupGoal
from trainer.warmup.self_sampling import SelfSampledThoughts


def next_token_run(parts: Assembly) -> NextTokenRun:
    """A run of ``parts``, whose objective does not have rollouts."""
    if parts.objective.mode is not Mode.WARM_UP:
        return NextTokenRun(parts)
    parts.learner.speed_up_rows(parts.new_ids, parts.objective.config.marker_rate)
    goal = WarmupGoal(parts)  # before the source: it takes the first windows
    return NextTokenRun(parts, SelfSampledThoughts(parts), goal)
