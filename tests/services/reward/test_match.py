"""The three matching rules, without any model."""

from __future__ import annotations

from fractions import Fraction

import pytest

from forethought.errors import InvalidInput
from services.reward.match import byte_prefix, exact, number_of, numeric


@pytest.mark.parametrize(
    ("prediction", "is_right"),
    [
        (" the", True),
        (" the end", True),
        ("", False),
        (" th", False),  # inside a token
        (" the e", False),
        ("the", False),  # the leading space belongs to the token
        (" the end.", False),  # one byte too many
        (" a", False),
    ],
)
def test_a_byte_prefix_ends_where_a_token_ends(prediction: str, is_right: bool) -> None:
    assert byte_prefix(prediction, " the end", (4, 4)) is is_right


def test_byte_prefix_counts_bytes_not_characters() -> None:
    assert byte_prefix("é", "éa", (2, 1))
    assert not byte_prefix("é", "éa", (1, 2))
    assert byte_prefix("é", "éa", (1, 1, 1))  # a token may end inside a character
    assert not byte_prefix("e\u0301", "éa", (2, 1))  # no normalisation


def test_an_empty_prediction_is_wrong_even_if_a_token_has_no_bytes() -> None:
    assert not byte_prefix("", "a", (0, 1))


@pytest.mark.parametrize("token_bytes", [(), (1,), (4, 5), (9, 0), (5 * 10**4299,) * 2])
def test_lengths_that_do_not_sum_to_the_text_are_refused(token_bytes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="the truth has 8 bytes"):
        byte_prefix("x", " the end", token_bytes)


def test_exact_counts_whitespace() -> None:
    assert exact("a b", "a b")
    assert not exact("a b ", "a b")
    assert not exact("A", "a")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", 1000),
        ("1,000", 1000),
        ("1000.0", 1000),
        (" 1e3\n", 1000),
        ("1E+3", 1000),
        ("12,345,678.50", Fraction("12345678.5")),
        ("50%", Fraction(1, 2)),
        ("50 %", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1/2%", Fraction(1, 200)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("+7", 7),
        ("\u22127", -7),
        ("- 7", -7),
        ("-0", 0),
        ("1e-999", Fraction(1, 10**999)),
        ("007", 7),
    ],
)
def test_what_is_a_number(text: str, number: Fraction | int) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "-", "%", "e3", "1e", "1e1000", "1,00", "1,0000", ",100", "1000,000", "1.2.3",
        "1/0", "1/", "/2", "1/2/3", "1.5/2", "1,000/2", "1 000", "1 1/2", "$5", "5 km", "seven", "nan",
        "inf", "0x10", "1_000", "--1", "1-", "٣", "\uff15", "1" * 1001, "1\x00", "\ud800",
    ],
)  # fmt: skip
def test_what_is_not_a_number(text: str) -> None:
    assert number_of(text) is None


def test_numbers_are_equal_exactly_or_not_at_all() -> None:
    assert numeric("0.5", "50%")
    assert numeric("2/4", "1/2")
    assert not numeric("0.33", "1/3")
    assert not numeric("half", "1/2")
    assert not numeric("", "0")
    with pytest.raises(InvalidInput, match="which is not a number"):
        numeric("1", "one")
