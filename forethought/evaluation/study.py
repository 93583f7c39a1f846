"""The walk of an evaluation: conditions, questions, and every checkpoint's answers to the same of them.

Design: models are loaded one after the other and only their numbers kept, so that a long series needs the
memory of one. The price is that nothing can be asked of an earlier model once a later one has answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forethought.evaluation.conditions import Conditions, conditions
from forethought.evaluation.figures import measure
from forethought.evaluation.order import Order, Progress
from forethought.evaluation.passing import checked
from forethought.evaluation.predictions import Grader
from forethought.evaluation.questions import (
    Questions,
    check_vocabulary,
    load_model,
    make_questions,
)
from forethought.evaluation.spent import Price, compute_of
from forethought.evaluation.summary import Examined, Report, summarise
from forethought.evaluation.text import plain_text_nll
from forethought.objectives import Objective
from forethought.run.checkpoints import Checkpoint

if TYPE_CHECKING:
    from forethought.compute.evaluation import Answer


def evaluate(order: Order, progress: Progress) -> Report:
    """Carry an order out.

    Raises:
        InvalidInput: a model, corpus or proxy that cannot be used, models of different vocabularies, no
            position at all, or a k beyond the group size.
    """
    given = conditions(order.checkpoints, order.wishes)
    k_list = checked(order.k_list, given.settings.sampling.group_size)
    questions = make_questions(order, given, progress)
    price = Price.of(given.learned_with, questions.num_parameters, order.unit)
    examined = [
        _examine(checkpoint, order, given, questions, price, progress)
        for checkpoint in order.checkpoints
    ]
    return summarise(order, given, questions, examined, k_list)


def _examine(
    checkpoint: Checkpoint,
    order: Order,
    given: Conditions,
    questions: Questions,
    price: Price,
    progress: Progress,
) -> Examined:
    from forethought.compute.evaluation import ask

    compute = compute_of(checkpoint, price)
    model = load_model(checkpoint.model, order)
    check_vocabulary(model, questions.vocabulary, checkpoint.label)
    num_queries, prompting = len(questions.queries), questions.prompting
    answers = ask(
        model,
        questions.queries,
        prompting,
        questions.sampling,
        order.seed,
        lambda num_done: progress(checkpoint.label, num_done, num_queries),
    )
    texts = _texts(model.tokenizer, answers)
    rewarded = _rewarded(model.tokenizer, given.objective, questions, answers)
    nll = plain_text_nll(model, questions.documents, prompting.no_think_head_ids, prompting.open_id)
    return Examined(checkpoint, measure(answers, texts, rewarded), compute, nll)


def _rewarded(
    tokenizer: Any, objective: Objective, questions: Questions, answers: Sequence[Answer]
) -> list[int]:
    """After how many thoughts of each position the prediction is right; empty without predictions."""
    if not objective.prediction_tokens:
        return []
    grader = Grader(tokenizer, objective)
    return [
        grader.num_right(answer, query.document, query.position.index)
        for answer, query in zip(answers, questions.queries, strict=True)
    ]


def _texts(tokenizer: Any, answers: Sequence[Answer]) -> list[list[str]]:
    """Every thought in words; the same one is decoded once."""
    from forethought.compute.evaluation import thought_ids

    ids_QG = [[thought_ids(thought) for thought in answer.thoughts_G] for answer in answers]
    text = {ids: tokenizer.decode(ids) for ids in {ids for ids_G in ids_QG for ids in ids_G}}
    return [[text[ids] for ids in ids_G] for ids_G in ids_QG]
