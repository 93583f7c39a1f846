"""Arrays as ``bytes`` fields: little-endian uint32 token ids, float32 or float64 numbers.

Design: in Python, repeated scalars decode thirty times slower than one ``bytes`` field. The price is that
the schema does not express the element type; its comments do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forethought.errors import InvalidInput

_LARGEST_ID = 2**32 - 1


def pack_ids(values: Sequence[int]) -> bytes:
    """Token ids, or other counts below 2**32, as little-endian uint32."""
    return np.asarray(values, dtype="<u4").tobytes()


def pack_floats(values: Sequence[float]) -> bytes:
    """Numbers rounded to little-endian float32, the precision engines compute log-probs in anyway."""
    return np.asarray(values, dtype="<f4").tobytes()


def pack_doubles(values: Sequence[float]) -> bytes:
    """Numbers as little-endian float64, unrounded: sums of log-probs need it to be accurate to 1e-5."""
    return np.asarray(values, dtype="<f8").tobytes()


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """The inverse of :func:`pack_ids`.

    Raises:
        InvalidInput: the length is not a multiple of 4.
    """
    return tuple(_array(data, "<u4", 4).tolist())


def unpack_floats(data: bytes) -> tuple[float, ...]:
    """The inverse of :func:`pack_floats`, up to its rounding.

    Raises:
        InvalidInput: the length is not a multiple of 4.
    """
    return tuple(_array(data, "<f4", 4).tolist())


def unpack_doubles(data: bytes) -> tuple[float, ...]:
    """The inverse of :func:`pack_doubles`.

    Raises:
        InvalidInput: the length is not a multiple of 8.
    """
    return tuple(_array(data, "<f8", 8).tolist())


def packable_ids(values: Sequence[int], what: str) -> bytes:
    """:func:`pack_ids` for ids from a caller.

    Raises:
        InvalidInput: one is not an integer from 0 to 2**32 - 1.
    """
    for value in values:
        if type(value) is not int or not 0 <= value <= _LARGEST_ID:
            raise InvalidInput(
                f"{what} holds {value!r}; expected token ids, integers from 0 to {_LARGEST_ID}: "
                "encode text with the model's own tokenizer"
            )
    return pack_ids(values)


def _array(data: bytes, dtype: str, width_bytes: int) -> np.ndarray:
    if len(data) % width_bytes:
        raise InvalidInput(
            f"a packed field has {len(data)} bytes; expected a multiple of {width_bytes}"
        )
    return np.frombuffer(data, dtype=dtype)
