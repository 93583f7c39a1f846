"""Accuracy as a power law of training compute:  P(C) = A / C^alpha + P*  (RPT, arXiv 2506.08007, sec. 4.2).

P is next-token accuracy, as in the paper: it rises, so A is negative and P* is the asymptote. The sign of
A is not constrained, so an error rate can be fitted as well.

Design: for a fixed exponent the other two parameters are a closed-form least-squares solution with P*
constrained to [0, 1], so only the exponent is searched: on a grid, then by
``scipy.optimize.minimize_scalar``. No starting point is needed. The price of a law with three parameters
remains: points without curvature do not determine P*, which then lies at its bound, and
:attr:`Law.caveat` reports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forethought.errors import InvalidInput
from forethought.lab.statistics import quantiles, resampled_means

MIN_POINTS = 4
_NUM_REFITS = 200
_MIN_EXPONENT, _MAX_EXPONENT = 0.01, 10.0
_NUM_GRID = 64
_NEAR = 1.02  # factor from the end of the range, which the search only approaches


@dataclass(frozen=True, slots=True)
class Law:
    """A fitted law: ``accuracy = amplitude / compute ** exponent + limit``.

    Example:
        ``Law(amplitude=-3.1, exponent=0.4, limit=0.97, r_squared=0.995, num_points=12, caveat="")``
    """

    amplitude: float
    exponent: float
    limit: float
    r_squared: float
    num_points: int
    caveat: str

    def at(self, compute: Any) -> Any:
        """The accuracy at a compute above 0, a number or an array."""
        return self.amplitude / np.asarray(compute, dtype=np.float64) ** self.exponent + self.limit


def why_no_fit(compute_S: Sequence[float], accuracy_S: Sequence[float]) -> str:
    """The reason why these points cannot be fitted; empty if they can."""
    num_different = len({compute for compute in compute_S if compute > 0})
    if num_different < MIN_POINTS:
        return (
            f"{num_different} checkpoints with different training compute above 0; expected at least "
            f"{MIN_POINTS} for three parameters: evaluate a longer series, or keep more of it "
            "(checkpoint.every_steps, checkpoint.keep)"
        )
    trained = [a for c, a in zip(compute_S, accuracy_S, strict=True) if c > 0]
    return "" if len(set(trained)) > 1 else "accuracy is the same at every checkpoint"


def fit_law(compute_S: Sequence[float], accuracy_S: Sequence[float]) -> Law:
    """Fit the points whose compute is above 0.

    Raises:
        InvalidInput: see :func:`why_no_fit`.
    """
    if reason := why_no_fit(compute_S, accuracy_S):
        raise InvalidInput(f"no power law can be fitted: {reason}")
    compute, accuracy = np.asarray(compute_S, float), np.asarray(accuracy_S, float)
    trained = compute > 0
    compute, accuracy = compute[trained], accuracy[trained]
    scale = float(np.exp(np.log(compute).mean()))
    exponent = _search(compute / scale, accuracy)
    slopes, limits, errors = _least_squares(compute / scale, accuracy, np.array([exponent]))
    spread = float(((accuracy - accuracy.mean()) ** 2).sum())
    return Law(
        amplitude=float(slopes[0]) * scale**exponent,
        exponent=exponent,
        limit=float(limits[0]),
        r_squared=1.0 - float(errors[0]) / spread,
        num_points=len(compute),
        caveat=_caveat(exponent, float(limits[0])),
    )


def limit_interval(
    compute_S: Sequence[float], accuracy_SQ: Any, seed: int
) -> tuple[float, float] | None:
    """The bootstrap interval of P* over positions, resampled jointly for all checkpoints.

    None if no resample can be fitted.
    """
    means_RS = resampled_means(np.asarray(accuracy_SQ, float), seed, _NUM_REFITS).T
    drawn = [[float(mean) for mean in means_S] for means_S in means_RS]
    limits = [fit_law(compute_S, a).limit for a in drawn if not why_no_fit(compute_S, a)]
    return quantiles(limits) if limits else None


def _search(compute_S: Any, accuracy_S: Any) -> float:
    """The exponent with the least squared error."""
    from scipy.optimize import minimize_scalar

    grid = np.geomspace(_MIN_EXPONENT, _MAX_EXPONENT, _NUM_GRID)
    best = int(np.argmin(_least_squares(compute_S, accuracy_S, grid)[2]))
    low, high = grid[max(0, best - 1)], grid[min(_NUM_GRID - 1, best + 1)]

    def error(log_exponent: float) -> float:
        exponents = np.exp(np.array([log_exponent]))
        return float(_least_squares(compute_S, accuracy_S, exponents)[2][0])

    found = minimize_scalar(error, bounds=(np.log(low), np.log(high)), method="bounded")
    return float(np.exp(found.x))


def _least_squares(compute_S: Any, accuracy_S: Any, exponents_E: Any) -> tuple[Any, Any, Any]:
    """Slopes, limits in [0, 1] and squared errors for every exponent. Shape [E] each."""
    x = compute_S[None, :] ** -exponents_E[:, None]
    y = accuracy_S[None, :]
    centred = x - x.mean(axis=1, keepdims=True)
    slopes = (centred * y).sum(axis=1) / (centred**2).sum(axis=1)
    limits = np.clip(y.mean() - slopes * x.mean(axis=1), 0.0, 1.0)
    # Where the limit was clipped the best slope changes; elsewhere this reproduces it.
    slopes = (x * (y - limits[:, None])).sum(axis=1) / (x**2).sum(axis=1)
    errors = ((slopes[:, None] * x + limits[:, None] - y) ** 2).sum(axis=1)
    return slopes, limits, errors


def _caveat(exponent: float, limit: float) -> str:
    if exponent < _MIN_EXPONENT * _NEAR or exponent > _MAX_EXPONENT / _NEAR:
        return f"the exponent is at the bound of {_MIN_EXPONENT} to {_MAX_EXPONENT}: P* is not determined"
    if limit in (0.0, 1.0):
        return "P* is at the bound of 0 to 1: the points do not determine the asymptote"
    return ""
