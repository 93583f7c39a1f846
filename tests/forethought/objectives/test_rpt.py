"""RPT's rewards, by hand: which bytes are right, what a box holds, and what wrong predictions earn."""

from __future__ import annotations

import json
import math

import pytest

from forethought import estimators, objectives
from forethought.config import load_settings
from forethought.corpus.token_decoder import decoder_of
from forethought.errors import InvalidInput
from forethought.objectives import Group
from forethought.objectives.parts.grading import (
    GroundTruth,
    TokenBytes,
    boxed,
    in_box,
    is_byte_prefix,
)
from forethought.objectives.parts.prompts import RPT
from forethought.preflight import check_run
from forethought.types import Thought
from tests import tiny

# " caf" + the two bytes of "é" as two tokens + "{x}" + a newline + a space + " end"
TOKENS = (b" caf", b"\xc3", b"\xa9", b"{x}", b"\n", b" ", b" end")
TRUTH = GroundTruth(b"".join(TOKENS), (4, 5, 6, 9, 10, 11, 15))


def spelling(*pieces: bytes) -> TokenBytes:
    return TokenBytes(tuple(range(len(pieces))), pieces)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        (b" caf", True),  # one token
        (b" ca", False),  # inside a token
        (b" caf\xc3", True),  # half a character, where a token ends
        (b" caf\xc3\xa9", True),
        (b" caf\xc3\xa9{x}\n", True),  # several tokens
        (b" caf\xc3\xa9{x}\n  end", True),  # all of it
        (b" caf\xc3\xa9{x}\n  end.", False),  # one byte too many
        (b" cafe", False),
        (b"caf", False),  # the space belongs to it
        (b" Caf", False),
        (b"", False),
    ],
)
def test_a_prediction_is_right_iff_it_is_whole_tokens_of_the_truth(
    prediction: bytes, right: bool
) -> None:
    assert is_byte_prefix(prediction, TRUTH.text, TRUTH.ends) is right


def test_zero_bytes_are_no_prediction_even_where_a_token_has_none() -> None:
    assert not is_byte_prefix(b"", b"abc", (0, 3))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (rb"so \boxed{ para}.", b" para"),
        (rb"\boxed{ }", b" "),  # a single space
        (b"\\boxed{\n}", b"\n"),
        (rb"\boxed{}", b""),
        (rb"\boxed{\frac{1}{2}} done", rb"\frac{1}{2}"),  # nested braces
        (rb"\boxed{a} or \boxed{b}", b"b"),  # the last one
        (rb"\boxed{a} or \boxed{b", None),  # the last one never closes
        (rb"\boxed{\boxed{4}}", b"4"),
        ("\\boxed{é}".encode(), "é".encode()),
        (b"\\boxed{\xc3}", b"\xc3"),  # half a character
        (rb"\boxed 4", None),
        (b"4", None),
        (b"", None),
    ],
)
def test_what_the_last_box_holds(text: bytes, inside: bytes | None) -> None:
    whole = boxed(spelling(text))
    assert (whole.text if whole else None) == inside
    bytewise = boxed(spelling(*(text[i : i + 1] for i in range(len(text)))))
    assert (bytewise.text if bytewise else None) == inside


def test_a_token_of_the_box_keeps_its_id_and_one_cut_by_a_brace_does_not() -> None:
    answer = TokenBytes((7, 8, 9, 5), (b"\\boxed", b"{ ", b"pa", b"ra}"))
    found = boxed(answer)
    assert found == TokenBytes((None, 9, None), (b" ", b"pa", b"ra"))
    assert found.ends_L == (1, 3, 5)


def thoughts(size: int) -> tuple[Thought, ...]:
    return (Thought((1, 2), (-0.5, -0.5), (), closed=True),) * size


def rewards(
    predictions: list[TokenBytes | None],
    logprobs: tuple[float, ...] = (),
    truth: GroundTruth = TRUTH,
    **parameters: object,
) -> tuple[float, ...]:
    group = Group((1,), thoughts(len(predictions)), (), 0.0, tuple(predictions), truth, logprobs)
    return objectives.load("rpt", parameters).rewards(group)


def test_the_published_reward_is_one_or_nothing() -> None:
    predictions = [spelling(b" caf"), spelling(b" ca"), None, spelling(b" caf", b"\xc3")]
    assert rewards(predictions) == (1.0, 0.0, 0.0, 1.0)


def test_an_objective_of_bytes_asks_for_no_likelihood() -> None:
    assert objectives.load("rpt").models == frozenset()
    assert objectives.load("rpt", {"reward": "first_token"}).models == frozenset()
    for reward in ("dense", "conditional_dense"):
        assert objectives.load("rpt", {"reward": reward}).models == {"prediction"}


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        (spelling(b" caf"), 1.0),
        (spelling(b" caf", b"xx"), 1.0),  # what follows does not matter
        (spelling(b" ca", b"f"), 1.0),  # the same bytes, spelled in two tokens
        (spelling(b" caff"), 0.0),  # begins right and is another token
        (spelling(b" ca"), 0.0),
        (None, 0.0),
    ],
)
def test_the_first_token_alone(prediction: TokenBytes | None, right: float) -> None:
    assert rewards([prediction], reward="first_token") == (right,)


def test_dense_pays_a_wrong_token_its_own_probability() -> None:
    """Appendix A (b): 1 where the first token is right, else P(y[0] | x_<t)."""
    predictions = [spelling(b" caf"), spelling(b" tea"), None, spelling(b" of")]
    logprobs = (math.log(0.25), math.log(0.5), -math.inf, math.log(0.125))
    assert rewards(predictions, logprobs, reward="dense") == pytest.approx((1.0, 0.5, 0.0, 0.125))


def test_conditional_dense_pays_only_beside_a_right_one() -> None:
    """Appendix A (c)."""
    right, wrong = spelling(b" caf"), spelling(b" tea")
    logprobs = (math.log(0.25), math.log(0.5))
    given = {"reward": "conditional_dense"}
    assert rewards([right, wrong], logprobs, **given) == pytest.approx((1.0, 0.5))
    assert rewards([wrong, wrong], logprobs, **given) == (0.0, 0.0)
    assert rewards([wrong, wrong], logprobs, **given, miss_penalty=0.5) == (-0.5, -0.5)


def test_grpo_divides_by_the_groups_spread() -> None:
    """By hand: mean 1/4, std sqrt((9/16 + 3/16) / 3) = 1/2, so (3/4) / (1/2) and (-1/4) / (1/2)."""
    rpt = objectives.load("rpt")
    estimator = estimators.load(rpt.estimator)
    right, wrong = estimator.advantages([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert right == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert wrong == [0.0] * 4


def test_the_plain_prompt_predicts_with_one_token() -> None:
    rpt = objectives.load("rpt", {"prompt": "plain"})
    assert (rpt.prediction_tokens, rpt.prediction_ends, rpt.template) == (1, False, None)
    answer = spelling(b"\\boxed{4}")
    assert rpt.prediction(answer) == answer
    assert rpt.prediction(spelling(b"")) is None
    assert rpt.prediction(spelling()) is None


def test_other_prompts_predict_in_a_box_and_may_end_early() -> None:
    rpt = objectives.load("rpt")
    assert rpt.template is RPT["v0"]
    assert (rpt.prediction_tokens, rpt.prediction_ends) == (256, True)
    found = rpt.prediction(spelling(b"It is \\boxed{4", b"}."))
    assert found is not None
    assert found.text == b"4"
    assert rpt.prediction(spelling(b"\\boxed{}")) is None
    assert rpt.prediction(spelling(b"4")) is None
    assert objectives.load("rpt", {"prediction_tokens": 9}).prediction_tokens == 9


def test_an_answer_longer_than_redis_takes_is_refused() -> None:
    words = ["objective.name=rpt", "sampling.group_size=64", "sampling.max_thought_tokens=64"]
    assert check_run(load_settings(None, words, {})).thinks
    words.append("objective.parameters={prediction_tokens = 4000}")
    with pytest.raises(InvalidInput, match="bytes in Redis"):
        check_run(load_settings(None, words, {}))


def test_all_positions_of_a_window_count_for_its_size() -> None:
    words = ["objective.parameters={positions = 'all'}", "corpus.window_tokens=2048"]
    with pytest.raises(InvalidInput, match="bytes in Redis"):
        check_run(load_settings(None, words, {}))


def test_the_curriculum_travels_with_the_task() -> None:
    given = {"positions": "entropy", "min_entropy": 0.5, "final_min_entropy": 1.5}
    rpt = objectives.load("rpt", given | {"curriculum_batches": 10, "prompt": "v6"})
    halfway = rpt.of_batch(5)
    carried = json.loads(halfway.config.model_dump_json())
    assert (carried["min_entropy"], carried["curriculum_batches"]) == (1.0, 0)
    assert halfway.template is RPT["v6"]
    assert rpt.of_batch(40).config.min_entropy == 1.5


@pytest.mark.parametrize(
    ("text", "is_possible"),
    [
        (b"}", False), (b"{", False), (b"4}", False), (b"\\{", False), (b"\\}", False), (b"}{", False),
        (b"}}", False), (b" {", False), (b"\\boxed{", False), (b"\\boxed{}", False), (b"", False),
        (b"{}", True), (b"{4}", True), (b" the", True), (b" ", True), (b"\n\n", True), (b"\0", True),
        (b"\xe2\x96", True), (b"\\boxed", True), (b"\\", True), (b"$", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prompt", ["v0", "v6", "plain"])
def test_a_token_can_be_predicted_iff_its_box_gives_it_back(
    text: bytes, is_possible: bool, prompt: str
) -> None:
    """And then a thought that predicts it is right, as the parser and the reward judge it."""
    objective = objectives.load("rpt", {"prompt": prompt})
    token = TokenBytes((7,), (text,))
    assert objective.can_predict(token) is (bool(text) if prompt == "plain" else is_possible)
    answer = in_box(token) if prompt != "plain" else token
    thought = Thought((1, 2), (), (), closed=True)
    truth = GroundTruth(text + b" end", (len(text), len(text) + 4))
    group = Group((7,), (thought,), (), 0.0, (objective.prediction(answer),), truth)
    assert objective.rewards(group) == (float(objective.can_predict(token)),)


def test_the_unpredictable_tokens_of_a_vocabulary_are_those_with_open_braces() -> None:
    decoder = decoder_of(tiny.build_tokenizer())
    found = decoder.unpredictable_ids(objectives.load("rpt"))
    assert {decoder.decode((i,)).text for i in found} == {b"{", b"}"}
    assert not decoder.unpredictable_ids(objectives.load("rpt", {"prompt": "plain"}))
    assert not decoder.unpredictable_ids(objectives.load("rlp"))
