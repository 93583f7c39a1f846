"""Two kinds of 95 % interval: over positions by the bootstrap, and over seeds by Student's t.

Design: a bootstrap interval is the percentile interval of the mean over resampled positions, each with
its thoughts fixed. The count of each position in each resample is computed once and cached, so that an
interval is a matrix product; the price is two bytes per position and resample. Only the choice of
positions varies, so the interval describes the evaluated text and not other training runs; positions of
one document are treated as independent, and intervals are too narrow where they are not.

Seeds are few, so their interval is Student's t and wide; a single seed has none. Differences are taken
within a seed, and the interval is of the differences, so that variation shared by the arms of a seed
cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95
_CHUNK_RESAMPLES = 100  # resamples converted to float at a time


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """A mean over positions and the interval around it.

    Example:
        ``BootstrapInterval(mean=0.24, low=0.19, high=0.30)``
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values_Q: Any, seed: int) -> BootstrapInterval:
        """The interval of one number per position."""
        values = np.asarray(values_Q, dtype=np.float64)
        low, high = quantiles(resampled_means(values[None, :], seed)[0])
        return cls(float(values.mean()), low, high)


def resampled_means(values_MQ: Any, seed: int, num_resamples: int = NUM_RESAMPLES) -> Any:
    """Means of M rows over resamples of the Q positions, the same for all rows. Shape [M, resamples]."""
    counts = _counts(values_MQ.shape[1], seed, num_resamples)
    parts = [
        values_MQ @ counts[start : start + _CHUNK_RESAMPLES].T.astype(np.float64)
        for start in range(0, num_resamples, _CHUNK_RESAMPLES)
    ]
    return np.concatenate(parts, axis=1) / values_MQ.shape[1]


def quantiles(values: Any) -> tuple[float, float]:
    """The bounds of the central interval that contains :data:`LEVEL` of the values."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _counts(num_positions: int, seed: int, num_resamples: int) -> Any:
    """The count of each position in each resample. Shape [resamples, Q]."""
    generator = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_positions), dtype=np.uint16)
    for row in counts:
        drawn = generator.integers(0, num_positions, num_positions)
        row[:] = np.bincount(drawn, minlength=num_positions)
    return counts


_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class SeedInterval:
    """A mean and the half-width of its interval; None for a single value.

    Example:
        ``SeedInterval(0.95, 0.01, 3)`` reads 0.95 ± 0.01 over three seeds
    """

    mean: float
    half_width: float | None
    num_values: int

    def __format__(self, spec: str) -> str:
        half = "" if self.half_width is None else f" ± {self.half_width:{spec}}"
        return f"{self.mean:{spec}}{half}"

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields by name, for JSON."""
        return {"mean": self.mean, "half_width": self.half_width, "num_values": self.num_values}


def seed_interval(values: Sequence[float]) -> SeedInterval:
    """The mean of ``values`` (at least one) and its interval."""
    mean, num_values = fmean(values), len(values)
    if num_values < 2:
        return SeedInterval(mean, None, num_values)
    from scipy.stats import t

    quantile = float(t.ppf((1 + _CONFIDENCE) / 2, num_values - 1))
    return SeedInterval(mean, quantile * stdev(values, mean) / sqrt(num_values), num_values)
