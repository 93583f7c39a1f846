"""RLVR: where a question ends, what an answer is, and what it earns, through the real scorer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forethought import estimators, objectives
from forethought.compute.model import find_markers
from forethought.compute.prompting import prompting_of
from forethought.config import load_settings
from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.mixture import open_corpus
from forethought.corpus.token_decoder import TokenDecoder
from forethought.errors import InvalidInput
from forethought.objectives.rlvr import TEMPLATE
from forethought.preflight import check_run
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    Task,
    Thought,
    VersionSpan,
)
from services.reward.scoring import Scorer
from tests import tiny

QUESTION, ANSWER = "half of one? ", r"\frac{1}{2}"
EXACT = {"prompt": "plain", "verifier": "exact"}


def ids_of(text: str) -> tuple[int, ...]:
    """Of the tiny tokenizer, whose tokens are single bytes."""
    return tuple(tiny.build_tokenizer()(text)["input_ids"])


def document(question: str = QUESTION, answer: str = ANSWER) -> Document:
    ids = ids_of(question + answer)
    num_read = len(ids_of(question))
    weights = (0.0,) * num_read + (1.0,) * (len(ids) - num_read) if num_read else ()
    return Document("q#0:0", "q", ids, nll_weights_N=weights)


def places(given: Document) -> list[int]:
    return [p.index for p in objectives.load("rlvr", EXACT).positions(given, Random(0))]


def test_the_position_is_the_first_token_of_the_answer() -> None:
    given = document()
    (position,) = objectives.load("rlvr", EXACT).positions(given, Random(0))
    assert position == Position(len(ids_of(QUESTION)), ids_of("\\"))


@pytest.mark.parametrize(
    "given",
    [
        document(question=""),  # a text without a question
        document(answer=""),
        Document("q#0:0", "q", ()),
    ],
)
def test_no_position_without_a_question_before_an_answer(given: Document) -> None:
    assert places(given) == []


def test_answers_are_graded_whole_or_not_asked_for(tmp_path: Path) -> None:
    """Every document of an endless supply, replacements included, that RLVR makes a task of."""
    answers = ["123456", "1234567890", "7", "1" * 200]
    records = [{"ask": "q=", "text": answer} for answer in answers]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceSection(path=str(path), prompt_field="ask")
    section = CorpusSection(sources=(source,), window_tokens=8, min_window_tokens=1)
    tokenizer = tiny.build_tokenizer()
    corpus = open_corpus(section, tokenizer, 0, tmp_path / "cache")
    truths = {
        tokenizer.decode(given.token_ids_N[index:])
        for given in corpus.take(50)
        for index in places(given)
    }
    assert truths == {"123456", "7"}


@pytest.mark.parametrize(
    ("parameters", "boxed", "num_tokens", "has_template"),
    [
        ({}, True, 1024, True),
        ({"prompt": "plain"}, False, 1, False),
        ({"prompt": "plain", "answer": "boxed"}, True, 1024, False),
        ({"answer": "whole", "prediction_tokens": 7}, False, 7, True),
    ],
)
def test_the_forms(
    parameters: dict[str, Any], boxed: bool, num_tokens: int, has_template: bool
) -> None:
    rlvr = objectives.load("rlvr", {"verifier": "exact", **parameters})
    assert rlvr.prediction_tokens == num_tokens
    assert (rlvr.template is not None) is has_template
    decoder = TokenDecoder(tiny.build_tokenizer())
    inside = rlvr.prediction(decoder.decode(ids_of(r"so \boxed{ 6 }")))
    assert inside is not None
    assert inside.text == (b" 6 " if boxed else rb"so \boxed{ 6 }")
    assert rlvr.prediction(decoder.decode(ids_of(r"\boxed{ }" if boxed else " \n"))) is None


def test_what_rlvr_declares() -> None:
    """GRPO's advantages, no likelihood, and answers that end at the end-of-text token."""
    rlvr = objectives.load("rlvr", EXACT)
    assert (rlvr.estimator, rlvr.models, rlvr.prediction_ends) == ("group_std", frozenset(), True)
    (advantages,) = estimators.load(rlvr.estimator).advantages([(1.0, 0.0, 0.0, 0.0)])
    assert advantages == pytest.approx((1.5, -0.5, -0.5, -0.5), abs=1e-5)


def test_the_template_stands_after_the_question_and_asks_for_the_box() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    markers = find_markers(tokenizer, tiny.THINK_OPEN, tiny.THINK_CLOSE)
    given = prompting_of(objectives.load("rlvr"), tokenizer, markers)
    assert tokenizer.decode(given.head_ids) == "<user>"
    assert tokenizer.decode(given.bridge_ids) == f"{TEMPLATE.after}<assistant><think>"
    assert r"\boxed{}" in TEMPLATE.after


def test_unknown_parameters_are_refused_in_words() -> None:
    with pytest.raises(InvalidInput, match="verifier"):
        objectives.load("rlvr", {"verifier": "judge"})


def test_a_group_of_one_is_refused_before_anything_starts() -> None:
    words = ("objective.name=rlvr", "sampling.group_size=1")
    settings = load_settings(None, (*words, "objective.parameters={verifier = 'exact'}"), {})
    with pytest.raises(InvalidInput, match="group_size is 1; expected at least 2"):
        check_run(settings)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("policy"))
    return Scorer(tiny.serve(directory, "policy"), None, 4096, objectives={"rlvr"})


def thought(prediction: str | None, ended: bool = True) -> Thought:
    """A thought and its answer; None where the thought ran out of budget."""
    said = ids_of("hm") + ((tiny.CLOSE_ID,) if prediction is not None else ())
    predicted = ids_of(prediction or "") + ((tiny.EOS_ID,) if prediction and ended else ())
    ids = said + predicted
    spans = (VersionSpan(0, len(ids)),)
    return Thought(ids, (-0.5,) * len(ids), spans, prediction is not None, len(predicted))


def rewards(scorer: Scorer, given: Document, thoughts: list[Thought], **parameters: Any) -> Any:
    rlvr = objectives.load("rlvr", parameters)
    prompting = Prompting((1,), (tiny.OPEN_ID,), (tiny.CLOSE_ID,), (9,))
    sampling = Sampling(len(thoughts), 9, 1.0, (tiny.CLOSE_ID,), rlvr.prediction_tokens)
    task = Task(
        7, 1, 0, 0, "rlvr", json.dumps(parameters), given, rlvr.positions(given, Random(0)),
        prompting, sampling, 3, models=(),
    )  # fmt: skip
    (result,) = scorer.score_rollouts([Rollout(task, (tuple(thoughts),))])
    assert result.failure is None, result.failure
    assert (result.policy_logprobs_KG, result.baseline_logprobs_K) == (((),), (0.0,))
    return result.rewards_KG[0]


def test_whole_answers_are_compared_as_text(scorer: Scorer) -> None:
    """The end-of-text token that ends an answer is no part of it, and the space around it neither."""
    thoughts = [
        thought("42"),
        thought("42", ended=False),
        thought(" 42\n"),
        thought("4"),
        thought("42.0"),
        thought(""),
        thought(None),
    ]
    got = rewards(scorer, document(answer=" 42"), thoughts, **EXACT, prediction_tokens=5)
    assert got == (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def test_half_a_character_is_wrong_and_no_error(scorer: Scorer) -> None:
    given, half = document(answer="é"), ids_of("é")[:1]
    short = thought("x", ended=False)
    ids = (*short.token_ids_L[:-1], *half)
    cut = Thought(ids, short.behaviour_logprobs_L, short.version_spans, True, 1)
    assert rewards(scorer, given, [thought("é"), cut], **EXACT) == (1.0, 0.0)


@pytest.mark.timeout(240)
def test_boxed_answers_are_compared_as_mathematics(scorer: Scorer) -> None:
    pytest.importorskip("math_verify")
    thoughts = [
        thought(r"It is \boxed{0.5}."),
        thought(r"\boxed{0.5}, no, \boxed{0.25}"),
        thought("0.5"),  # not in a box
        thought(r"\boxed{\dfrac{2}{4}}"),
        thought(r"\boxed{half"),
        thought(None),
    ]
    assert rewards(scorer, document(), thoughts) == (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
