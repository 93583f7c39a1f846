"""Running an evaluation: conditions, questions, and every checkpoint's answers to the same questions.

Design: models are loaded one at a time and only their measurements kept, so that a long series needs the
memory of one model. The price is that an earlier model cannot be queried again once a later one is
loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forethought.corpus.token_decoder import decoder_of
from forethought.lab.evaluation.figures import measurements_of
from forethought.lab.evaluation.pass_at_k import checked
from forethought.lab.evaluation.questions import (
    Questions,
    check_vocabulary,
    load_model,
    make_questions,
)
from forethought.lab.evaluation.request import Conditions, EvalRequest, Progress, conditions
from forethought.lab.evaluation.summary import CheckpointResult, Report, summarise
from forethought.lab.evaluation.text import plain_text_nll
from forethought.objectives import Objective
from forethought.objectives.parts.grading import GroundTruth, is_byte_prefix
from forethought.run.checkpoints import Checkpoint
from forethought.run.cost import compute_of
from forethought.types import Document

if TYPE_CHECKING:
    from forethought.compute.answers import Answer
    from forethought.compute.sampling import Sample


def evaluate_checkpoints(request: EvalRequest, progress: Progress) -> Report:
    """Run an eval request.

    Raises:
        InvalidInput: an unusable model, corpus or proxy, models with different vocabularies, no position
            to evaluate, or a k beyond the group size.
    """
    given = conditions(request.checkpoints, request.overrides)
    k_list = checked(request.k_list, given.settings.sampling.group_size)
    questions = make_questions(request, given, progress)
    results = [
        _evaluate(checkpoint, request, given, questions, progress)
        for checkpoint in request.checkpoints
    ]
    return summarise(request, given, questions, results, k_list)


def _evaluate(
    checkpoint: Checkpoint,
    request: EvalRequest,
    given: Conditions,
    questions: Questions,
    progress: Progress,
) -> CheckpointResult:
    from forethought.compute.answers import answer_queries

    compute = compute_of(checkpoint, request.unit, questions.num_parameters)
    model = load_model(checkpoint.model, request, given.settings.model)
    check_vocabulary(model, questions.vocabulary, checkpoint.label)
    num_queries, prompting = len(questions.queries), questions.prompting
    answers = answer_queries(
        model,
        questions.queries,
        prompting,
        questions.sampling,
        request.seed,
        lambda num_done: progress(checkpoint.label, num_done, num_queries),
        request.max_cache_bytes,
    )
    texts = _texts(model.tokenizer, answers)
    rewarded = _rewarded(model.tokenizer, given.objective, questions, answers)
    nll = plain_text_nll(model, questions.documents, prompting)
    return CheckpointResult(checkpoint, measurements_of(answers, texts, rewarded), compute, nll)


def _rewarded(
    tokenizer: Any, objective: Objective, questions: Questions, answers: Sequence[Answer]
) -> list[int]:
    """Number of thoughts per position with a correct prediction; empty without predictions."""
    if not objective.prediction_tokens:
        return []
    grader = Grader(tokenizer, objective)
    return [
        grader.num_right(answer, query.document, query.position.index)
        for answer, query in zip(answers, questions.queries, strict=True)
    ]


def _texts(tokenizer: Any, answers: Sequence[Answer]) -> list[list[str]]:
    """Every thought as text; equal thoughts are decoded once."""
    from forethought.compute.answers import thought_ids

    ids_QG = [[thought_ids(thought) for thought in answer.thoughts_G] for answer in answers]
    text = {ids: tokenizer.decode(ids) for ids in {ids for ids_G in ids_QG for ids in ids_G}}
    return [[text[ids] for ids in ids_G] for ids_G in ids_QG]


class Grader:
    """Grades predictions sampled after a thought, by bytes: RPT's reward (arXiv 2506.08007, eq. 2).

    Runs are compared by this one rule, whatever variant of the reward they were trained with, on tokens
    as sampled and as stored; a thought that did not close has no prediction and is wrong. The price: a
    run trained with a denser reward is not measured by its own.

    Example:
        ``Grader(tokenizer, rpt).num_right(answer, document, index=10)``
    """

    def __init__(self, tokenizer: Any, objective: Objective) -> None:
        self._decoder, self._objective = decoder_of(tokenizer), objective

    def num_right(self, answer: Answer, document: Document, index: int) -> int:
        """Number of thoughts at a position that are followed by a correct prediction."""
        stored = document.token_bytes_N[index:]
        truth = self._decoder.ground_truth(
            document.token_ids_N[index:], stored, without_end=self._objective.prediction_ends
        )
        return sum(self._is_right(thought, truth) for thought in answer.thoughts_G)

    def _is_right(self, thought: Sample, truth: GroundTruth) -> bool:
        if not thought.stopped or not thought.num_prediction_tokens:
            return False
        decode = (
            self._decoder.decode_answer if self._objective.prediction_ends else self._decoder.decode
        )
        answer_bytes = decode(thought.token_ids_L[-thought.num_prediction_tokens :])
        prediction = self._objective.prediction(answer_bytes)
        return prediction is not None and is_byte_prefix(prediction.text, truth.text, truth.ends)
