"""The tokenizer and the quoted thoughts of the small base model that ``up`` trains."""

from __future__ import annotations

import random

import pytest

from forethought.errors import InvalidInput
from forethought.types import Document
from trainer.base_corpus import quote_thoughts, train_tokenizer

OPEN, CLOSE = 998, 999


def document(num_tokens, **fields):
    return Document("d#0:0", "d", tuple(range(num_tokens)), **fields)


def thoughts_of(token_ids_N):
    start, end = token_ids_N.index(OPEN), token_ids_N.index(CLOSE)
    return start, token_ids_N[start + 1 : end], end


def quoted(num_documents, num_tokens, share, max_quote_tokens, seed=0):
    rng = random.Random(seed)
    return [
        quote_thoughts(document(num_tokens), rng, OPEN, CLOSE, share, max_quote_tokens)
        for _ in range(num_documents)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "naïve 日本語 🙂\u200d🙂",
        "tabs\t\r\n\0 and  spaces ",
        "",
        "\ufeffbom",
        "ß" * 300,
    ],
)
def test_any_text_round_trips_even_without_training_text(text):
    for tokenizer in (train_tokenizer([], 300, "<think>", "</think>"), trained()):
        token_ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(token_ids) == text
        assert tokenizer.unk_token_id is None


def trained(vocab_size=320):
    return train_tokenizer(["the cat and the hat " * 30], vocab_size, "<think>", "</think>")


def test_the_vocabulary_is_filled_with_merges_as_far_as_the_text_gives_any():
    assert len(train_tokenizer([], 300, "<think>", "</think>")) == 260
    assert 260 < len(trained(262)) <= 262
    assert 262 < len(trained(5000)) < 400


def test_a_run_without_a_space_is_trained_on_in_pieces_up_to_a_limit():
    """As one word of 2 MB it took 103 s; text with spaces is trained on whole."""
    genome = "acgt" * 75_000 + "qz" * 5_000
    tokens = train_tokenizer([genome, " word and word"], 400, "<think>", "</think>").get_vocab()
    assert max(map(len, tokens)) == 64
    assert "qz" not in tokens
    assert {"Ġword", "Ġand"} <= tokens.keys()
    spaced = train_tokenizer(["qz " * 5_000], 300, "<think>", "</think>").get_vocab()
    assert "qz" in spaced or "Ġqz" in spaced


def test_training_twice_gives_the_same_tokenizer():
    first, second = (trained().backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_markers_end_and_pad_are_single_special_tokens_and_survive_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = trained()
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = one("the<think>cat</think>")["input_ids"]
        assert ids.count(one.convert_tokens_to_ids("<think>")) == 1
        assert ids.count(one.convert_tokens_to_ids("</think>")) == 1
        assert one.decode(ids, skip_special_tokens=True) == "thecat"
        assert one.eos_token_id != one.pad_token_id
        assert {one.eos_token_id, one.pad_token_id} <= set(one.all_special_ids)


@pytest.mark.parametrize(("opening", "closing"), [("", "</t>"), ("<t>", "<t>"), ("<|end|>", "<t>")])
def test_indistinct_markers_are_refused(opening, closing):
    with pytest.raises(InvalidInput, match="think_open"):
        train_tokenizer([], 300, opening, closing)


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(InvalidInput, match="at least 260"):
        train_tokenizer([], 259, "<think>", "</think>")


def test_a_thought_quotes_what_precedes_it_and_the_window_keeps_its_length():
    for one in quoted(300, num_tokens=40, share=1.0, max_quote_tokens=6):
        start, quote, end = thoughts_of(one.token_ids_N)
        assert len(one.token_ids_N) == 40
        assert start >= 1
        assert end <= 38
        assert len(quote) <= 6
        assert not quote or quote == tuple(range(quote[0], quote[0] + len(quote)))
        assert not quote or quote[-1] < start
        rest = one.token_ids_N[:start] + one.token_ids_N[end + 1 :]
        assert rest == tuple(range(len(rest)))


def test_positions_and_lengths_cover_their_whole_range():
    thoughts = [
        thoughts_of(one.token_ids_N) for one in quoted(2000, 12, share=1.0, max_quote_tokens=3)
    ]
    assert {start for start, _, _ in thoughts} == set(range(1, 10))
    assert {len(quote) for _, quote, _ in thoughts} == {0, 1, 2, 3}


def test_the_share_of_windows_with_a_thought_is_as_requested():
    with_thought = sum(OPEN in one.token_ids_N for one in quoted(4000, 20, 0.3, 4))
    assert with_thought / 4000 == pytest.approx(0.3, abs=0.03)
    assert not any(OPEN in one.token_ids_N for one in quoted(200, 20, 0.0, 4))


def test_the_same_random_state_gives_the_same_documents():
    assert quoted(50, 30, 0.5, 5, seed=3) == quoted(50, 30, 0.5, 5, seed=3)
    assert quoted(50, 30, 0.5, 5, seed=3) != quoted(50, 30, 0.5, 5, seed=4)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3])
def test_a_window_too_short_for_a_thought_is_unchanged(num_tokens):
    assert quoted(20, num_tokens, 1.0, 4) == [document(num_tokens)] * 20


def test_the_smallest_window_gets_an_empty_thought():
    assert quoted(1, 4, 1.0, 4)[0].token_ids_N == (0, OPEN, CLOSE, 1)


def test_a_window_that_already_has_a_thought_is_unchanged():
    one = Document("d#0:0", "d", (1, OPEN, 2, CLOSE, 3, 4, 5))
    assert quote_thoughts(one, random.Random(0), OPEN, CLOSE, 1.0, 4) is one


def test_annotations_move_with_their_tokens():
    before = document(
        20,
        marks=tuple(range(20)),
        token_bytes_N=tuple(range(100, 120)),
        nll_weights_N=(0.5,) * 20,
        entropies_N=(1.0,) * 20,
    )
    for seed in range(50):
        after = quote_thoughts(before, random.Random(seed), OPEN, CLOSE, 1.0, 5)
        start, _, end = thoughts_of(after.token_ids_N)
        inside = set(range(start, end + 1))
        assert set(after.marks) == set(range(20)) - inside
        for place in range(20):
            token_bytes = 0 if place in inside else after.token_ids_N[place] + 100
            assert after.token_bytes_N[place] == token_bytes
            weight = 0.5 if place not in inside else 0.0 if place == start else 10.0
            assert after.nll_weights_N[place] == weight
        assert after.entropies_N == ()


def test_the_answer_of_a_prompt_is_not_cut():
    before = document(12, nll_weights_N=(0.0,) * 5 + (1.0,) * 7, token_bytes_N=(1,) * 12)
    for seed in range(50):
        after = quote_thoughts(before, random.Random(seed), OPEN, CLOSE, 1.0, 5)
        start, quote, end = thoughts_of(after.token_ids_N)
        assert after.token_ids_N[:start] + after.token_ids_N[end + 1 :] == before.token_ids_N
        assert len(after.nll_weights_N) == len(after.token_bytes_N) == 12 + 2 + len(quote)
