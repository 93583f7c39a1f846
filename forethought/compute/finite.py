"""The check that a model's numbers are finite, for what measures models.

Design: one number that is not finite makes every mean NaN, and comparisons with NaN are all false; so it is
an error where it is first seen. Services check theirs per request instead. The price: one such number ends
a measurement whose others are fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from forethought.errors import InvalidInput


def not_finite(model: Any) -> str:
    """The name of a model's first parameter that holds NaN or an infinity; empty if none does.

    A sum tells in one pass and without memory; only where it is not finite are the numbers looked at.
    """
    return next(
        (
            name
            for name, weights in model.named_parameters()
            if weights.is_floating_point()
            and not weights.sum(dtype=torch.float32).isfinite()
            and not weights.isfinite().all()
        ),
        "",
    )


def check_finite(model: Any, numbers: Iterable[float], what: str) -> None:
    """Check log-probs or entropies that a transformers model gave.

    Raises:
        InvalidInput: one is NaN or infinite.
    """
    bad = next((number for number in numbers if not math.isfinite(number)), None)
    if bad is not None:
        raise InvalidInput(
            f"model {model.name_or_path} gave {what} of {bad}; expected finite numbers: its weights are "
            "corrupt, or overflow in its dtype (float32 has the widest range)"
        )
