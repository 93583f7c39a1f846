"""Results and errors come back in the order and shape of what was given, from one call."""

from __future__ import annotations

import pytest

from forethought.scatter import compute_flat, compute_valid


def squares(calls: list[list[int]], numbers: list[int]) -> list[int]:
    calls.append(numbers)
    return [number * number for number in numbers]


@pytest.mark.parametrize(
    ("errors", "expected", "computed"),
    [
        ([None, None, None], [1, 4, 9], [1, 2, 3]),
        (["a", None, "c"], ["a", 4, "c"], [2]),
        (["a", "b", "c"], ["a", "b", "c"], []),
    ],
)
def test_errors_stay_in_place(
    errors: list[str | None], expected: list[int | str], computed: list[int]
) -> None:
    calls: list[list[int]] = []
    assert compute_valid([1, 2, 3], errors, lambda valid: squares(calls, valid)) == expected
    assert calls == [computed]


def test_a_missing_error_is_noticed() -> None:
    with pytest.raises(ValueError, match="zip"):
        compute_valid([1, 2], [None], lambda valid: valid)


def test_ragged_groups_keep_their_shape() -> None:
    calls: list[list[int]] = []
    assert compute_flat([[1, 2], [], [3]], lambda flat: squares(calls, flat)) == [[1, 4], [], [9]]
    assert calls == [[1, 2, 3]]
