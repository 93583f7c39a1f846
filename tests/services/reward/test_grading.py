"""Grading by the scorer: bytes of tokens as sampled, and only the forward passes that a reward needs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from forethought import objectives
from forethought.corpus.token_bytes import decoded_vocabulary, vocabulary_bytes
from forethought.corpus.token_decoder import TokenDecoder
from forethought.lab.demo.corpus import build_tokenizer
from forethought.objectives.parts.grading import is_byte_prefix
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    ScoredRollout,
    Task,
    Thought,
    VersionSpan,
)
from services.reward.groups import split_at_close
from services.reward.scoring import Scorer
from tests import tiny
from trainer.base_corpus import train_tokenizer

PROMPTING = Prompting((1, 2), (tiny.OPEN_ID,), (tiny.CLOSE_ID,), (9,))
TEXT = "the cat sat on the mat. Füße, 日本語 🙂\n\ttabs  and\x00nul "


def byte_ids(text: str) -> tuple[int, ...]:
    """Token ids by the tiny tokenizer, whose tokens are single bytes."""
    return tuple(tiny.build_tokenizer()(text)["input_ids"])


def test_a_byte_level_vocabulary_decodes_any_text() -> None:
    tokenizer = train_tokenizer([TEXT * 20], 320, "<think>", "</think>")
    decoder = TokenDecoder(tokenizer)
    ids = tokenizer(TEXT + "<think>")["input_ids"]
    decoded = decoder.decode(ids)
    assert decoded.text == (TEXT + "<think>").encode()
    assert len(decoded.pieces_L) < len(decoded.text)
    sizes = vocabulary_bytes(tokenizer)
    assert sizes is not None
    assert [len(piece) for piece in decoded.pieces_L] == [sizes[i] for i in ids]
    all_bytes = {piece for piece in decoded_vocabulary(tokenizer) or () if len(piece) == 1}
    assert all_bytes == {bytes([value]) for value in range(256)}


def test_ids_without_a_token_decode_to_no_bytes() -> None:
    assert TokenDecoder(tiny.build_tokenizer()).decode((99_999, *byte_ids("a"))).text == b"a"


def test_the_truths_boundaries_are_those_of_the_corpus() -> None:
    """Not those that the served tokenizer would give its text."""
    decoder = TokenDecoder(tiny.build_tokenizer())
    ids = byte_ids("abcd")
    assert decoder.ground_truth(ids, (3, 0, 0, 1)).ends == (3, 3, 3, 4)
    assert decoder.ground_truth(ids, ()).ends == (1, 2, 3, 4)
    assert decoder.ground_truth(ids, ()).text == b"abcd"


def test_words_without_spaces_are_decoded_by_their_names() -> None:
    """A WordLevel vocabulary does not define what separates words; stored lengths include it."""
    tokenizer = build_tokenizer()
    ids = tokenizer("mul 3 add", add_special_tokens=False)["input_ids"]
    assert decoded_vocabulary(tokenizer) is None
    truth = TokenDecoder(tokenizer).ground_truth(ids, (3, 2, 4))
    assert truth.text == b"".join(name.encode() for name in tokenizer.convert_ids_to_tokens(ids))
    assert truth.ends[-1] == len(truth.text)


def test_a_thought_in_one_piece_is_split_at_its_first_close() -> None:
    whole = Thought((5, 40, 6, 40, 7), (), (), closed=False)
    split = split_at_close(whole, (40,))
    assert (split.thought_ids, split.prediction_ids, split.closed) == ((5, 40), (6, 40, 7), True)
    assert split_at_close(whole, (41,)) == whole


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tiny.build_model_directory(tmp_path_factory.mktemp("policy"))
    return tiny.serve(directory, "policy")


@pytest.fixture
def scorer(policy: Any) -> Scorer:
    return Scorer(policy, None, 4096, objectives={"rpt", "rlp"})


def thought(text: str, prediction: str | None) -> Thought:
    """A thought and the prediction after its close; None if it ran out of budget."""
    thought_ids = byte_ids(text) + ((tiny.CLOSE_ID,) if prediction is not None else ())
    predicted = byte_ids(prediction or "")
    ids = thought_ids + predicted
    spans = (VersionSpan(0, len(ids)),)
    return Thought(ids, (-0.5,) * len(ids), spans, prediction is not None, len(predicted))


def rollout(
    thoughts_G: list[Thought], text: str = "one two", index: int = 3, **parameters: Any
) -> Rollout:
    objective = objectives.load("rpt", parameters)
    ids = byte_ids(text)
    stored = (3, *[1] * (len(ids) - 1))
    document = Document("d#0:0", "d", ids, (1,) * index + stored[: len(ids) - index])
    sampling = Sampling(len(thoughts_G), 9, 1.0, (tiny.CLOSE_ID,), objective.prediction_tokens)
    config = json.dumps(parameters)
    task = Task(
        7, 1, 0, 0, "rpt", config, document, (Position(index, ids[index : index + 1]),), PROMPTING,
        sampling, 3, models=tuple(sorted(objective.models)),
    )  # fmt: skip
    return Rollout(task, (tuple(thoughts_G),))


def scored(scorer: Scorer, given: Rollout) -> ScoredRollout:
    (result,) = scorer.score_rollouts([given])
    assert result.failure is None, result.failure
    return result


def no_forward_pass(*_: Any) -> list[Any]:
    raise AssertionError("a reward that compares only bytes ran a forward pass")


def test_bytes_alone_are_graded_without_a_model(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth after "one" is " two", whose first stored token has three bytes."""
    given = rollout(
        [
            thought("hm", r"It is \boxed{ tw}."),
            thought("hm", r"It is \boxed{ t}."),
            thought("hm", r"\boxed{ tw} no, \boxed{ two}"),
            thought("hm", r"\boxed{ two!}"),
            thought(r"\boxed{ tw}", "."),  # inside the thought
            thought(r"\boxed{ tw}", None),
            thought("", ""),
        ]
    )
    monkeypatch.setattr(
        scorer, "_totals", lambda serving, branches: list(map(no_forward_pass, branches))
    )
    result = scored(scorer, given)
    assert result.rewards_KG == ((1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0),)
    assert (result.policy_logprobs_KG, result.baseline_logprobs_K) == (((),), (0.0,))


def test_the_plain_form_takes_the_tokens_after_the_close(scorer: Scorer) -> None:
    given = rollout(
        [thought("hm", " tw"), thought("hm", " "), thought("hm", " two"), thought("", None)],
        prompt="plain",
        prediction_tokens=4,
    )
    assert scored(scorer, given).rewards_KG == ((1.0, 0.0, 1.0, 0.0),)


@torch.inference_mode()
def test_dense_rewards_are_the_models_own_probabilities(scorer: Scorer, policy: Any) -> None:
    """log p(y[0] | no-think head + context), the think-open token masked, by a plain forward pass."""
    given = rollout(
        [thought("hm", " tw"), thought("hm", "a"), thought("", "zz"), thought("", None)],
        prompt="plain",
        prediction_tokens=3,
        reward="dense",
    )
    result = scored(scorer, given)
    prefix = PROMPTING.no_think_head_ids + given.task.document.token_ids_N[:3]
    logits = policy.now.language_model.model(torch.tensor([prefix])).logits[0, -1].double()
    logits[tiny.OPEN_ID] = -math.inf
    probabilities = torch.softmax(logits, -1)
    (a,), (z,) = byte_ids("a"), byte_ids("z")
    expected = (1.0, float(probabilities[a]), float(probabilities[z]), 0.0)
    assert result.rewards_KG[0] == pytest.approx(expected, rel=1e-5)
    assert result.policy_logprobs_KG == ((),)


@torch.inference_mode()
def test_a_likelihood_after_a_thought_is_read_up_to_its_close(scorer: Scorer, policy: Any) -> None:
    """The prediction is not part of the target's prefix."""
    long, short = thought("hm", " tw"), thought("hm", "")
    given = rollout([long, short], prompt="plain")
    task = given.task
    result = scored(scorer, replace(given, task=replace(task, models=("policy",))))
    ((first, second),) = result.policy_logprobs_KG
    assert first == second
    opened = PROMPTING.head_ids + task.document.token_ids_N[:3] + PROMPTING.bridge_ids
    ids = opened + byte_ids("hm") + (tiny.CLOSE_ID,)
    logits = policy.now.language_model.model(torch.tensor([ids])).logits[0, -1].double()
    target = task.positions_K[0].target_ids_H[0]
    assert first == pytest.approx(float(torch.log_softmax(logits, -1)[target]), abs=1e-5)


def test_a_batch_may_mix_what_rewards_need(scorer: Scorer) -> None:
    """Likelihoods stay with their group when others in the batch need different ones, or none."""
    thoughts_G = [thought("hm", " tw"), thought("a", "b")]
    given = {"prompt": "plain", "prediction_tokens": 3}
    rollouts = [
        rollout(thoughts_G, **given, reward=reward)
        for reward in ("dense", "prefix", "dense", "first_token")
    ]
    alone = [scored(scorer, one) for one in rollouts]
    assert scorer.score_rollouts(rollouts) == alone
    assert alone[0].rewards_KG != alone[1].rewards_KG


def test_random_vocabularies_never_confuse_pieces_with_text() -> None:
    """A cut at any token boundary of random text is correct, at any other byte it is wrong."""
    rng = Random(0)
    tokenizer = train_tokenizer([TEXT * 20], 320, "<think>", "</think>")
    decoder, rpt = TokenDecoder(tokenizer), objectives.load("rpt")
    for _ in range(20):
        text = "".join(rng.choice(TEXT.replace("{", "")) for _ in range(12))
        truth = decoder.ground_truth(tokenizer(text)["input_ids"], ())
        whole = text.encode()
        for length in range(len(whole) + 1):
            ids = tokenizer(r"\boxed{")["input_ids"]
            answer = decoder.decode(ids)
            pieces = (*answer.pieces_L, whole[:length], b"}")
            found = rpt.prediction(type(answer)((None,) * len(pieces), pieces))
            predicted = found.text if found else b""
            assert predicted == whole[:length]
            right = length in truth.ends and length > 0
            assert is_byte_prefix(predicted, truth.text, truth.ends) is right
