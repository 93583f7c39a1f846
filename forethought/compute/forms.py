"""The forms in which a model's rows may be computed, from the fastest to the most general.

    rows        trees      what rows share at their beginning is computed once, all packed into one row
                cached     the same by passes with a cache; without gradient
                padded     each row whole, beside others
                alone      each row whole, in a pass of its own: what the others are compared with
    decoding    trees      one trunk for all samples of all its positions
                cache      one prefix for its samples, padded beside others, with transformers' cache
                unpadded   the same, beside prefixes of its length only
                recompute  the whole row for every token

Design: which forms give the same numbers is measured when a model is loaded
(:mod:`forethought.compute.consistency`) and noted on the model itself, so that all code that computes with
it uses them, and copies have them too. The price is an attribute that transformers does not know. A model
without one is computed in padded rows and decoded with a cache.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

NO_LIMIT = sys.maxsize
"""A row length that no row exceeds."""

_ATTRIBUTE = "forethought_forms"

RowForm = Literal["trees", "cached", "padded", "alone"]
DecodingForm = Literal["trees", "cache", "unpadded", "recompute"]


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms a model is computed in; rows longer than ``limit_tokens`` are computed alone.

    ``gradients`` is the form of rows with gradient, if it is another.

    Example:
        ``Forms("trees", "trees")``
    """

    rows: RowForm = "padded"
    decoding: DecodingForm = "cache"
    limit_tokens: int = NO_LIMIT
    gradients: RowForm | None = None

    @property
    def with_gradient(self) -> Forms:
        """Those for a backward pass."""
        return replace(self, rows=self.gradients or self.rows)

    @property
    def shares(self) -> bool:
        """Whether what rows share is computed once, without gradient."""
        return self.rows in ("trees", "cached")


def note_forms(model: Any, forms: Forms) -> None:
    """Have a model's rows computed in these forms from now on."""
    setattr(model, _ATTRIBUTE, forms)


def forms_of(model: Any) -> Forms:
    """The forms noted on a model, or the default ones."""
    forms: Forms = getattr(model, _ATTRIBUTE, Forms())
    return forms
