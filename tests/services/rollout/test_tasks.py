"""Task handling shared by all rollout engines."""

from __future__ import annotations

import math

import pytest

from forethought.types import Document, Position, Prompting, Sampling, Task, Thought, VersionSpan
from services.rollout.tasks import rollouts_of


def task(task_id: int) -> Task:
    positions, prompting = (Position(1, (2,)),), Prompting((), (), ())
    document = Document("d", "s", (1, 2))
    return Task(task_id, 1, 0, 0, "rlp", "{}", document, positions, prompting, Sampling(1, 2), 0)


def thoughts(logprob: float) -> tuple[tuple[Thought, ...], ...]:
    return ((Thought((3, 4), (-0.1, logprob), (VersionSpan(0, 2),), closed=False),),)


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, math.inf])
def test_logprobs_that_are_not_finite_fail_only_their_task(logprob: float) -> None:
    sampled = [thoughts(-0.2), thoughts(logprob)]
    tasks, faults = [task(0), task(1), task(2)], [None, "refused", None]
    sound, refused, broken = rollouts_of(tasks, faults, lambda _: sampled, "r")
    assert (sound.error, sound.thoughts_KG) == (None, thoughts(-0.2))
    assert refused.error == "refused"
    assert "task 2 log-probs that are not finite" in (broken.error or "")
    assert broken.thoughts_KG == ()
