"""Advantage estimators: pure functions from a batch of rewards to advantages, one file each.

They live apart from objectives because some need the whole batch, which only the learner has.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from forethought.errors import InvalidInput

_FOLDER = Path(__file__).parent / "estimator_files"

Rewards = Sequence[Sequence[float]]
"""Rewards of every group of a batch, ragged: [B][G]."""


class Estimator(Protocol):
    """``advantages(rewards_BG) -> advantages_BG``; ``min_group_size`` is the least G it is defined for."""

    min_group_size: int

    def advantages(self, rewards_BG: Rewards) -> list[list[float]]:
        """One finite advantage per reward, in the same ragged shape."""
        ...


def names() -> list[str]:
    """Every estimator there is."""
    return sorted(file.stem for file in _FOLDER.glob("*.py") if file.stem[0] != "_")


def load(name: str) -> Estimator:
    """The estimator of a file in that folder.

    Raises:
        InvalidInput: there is none of that name.
    """
    module = f"forethought.estimator_files.{name}"
    try:
        return cast(Estimator, importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # the estimator exists and something it imports does not
        raise InvalidInput(
            f"no estimator {name!r}: expected a file of forethought/estimator_files, one of "
            f"{', '.join(names())}"
        ) from error
