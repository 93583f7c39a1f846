"""What an objective is given to grade: the prediction behind each thought."""

from __future__ import annotations

from collections.abc import Sequence

from forethought.corpus.spelling import Speller
from forethought.objectives import Objective
from forethought.objectives.parts.grading import Spelling
from forethought.types import Thought


def predictions_of(
    thoughts_G: Sequence[Thought], objective: Objective, speller: Speller
) -> tuple[Spelling | None, ...]:
    """What every thought predicts; None where it did not close or says nothing. Shape [G].

    Where a prediction may end early, the token that ends it is no part of it.
    """
    spell = speller.said if objective.prediction_ends else speller.spelled
    return tuple(
        objective.prediction(spell(thought.prediction_ids)) if thought.closed else None
        for thought in thoughts_G
    )


def split_at_close(thought: Thought, close_id: int) -> Thought:
    """A thought that came in one piece: what follows its first close token is the prediction."""
    ids = thought.token_ids_L
    if close_id not in ids:
        return thought
    num_after = len(ids) - 1 - ids.index(close_id)
    return Thought(ids, thought.behaviour_logprobs_L, thought.version_spans, True, num_after)
