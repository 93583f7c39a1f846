"""Where thoughts help: the information gain by quartiles of the positions.

    entropy        of the proxy: how uncertain the next token is, without knowing it
    no_think_nll   how surprising it is without a thought
    logprob_std    the spread of log p(target | thought) over the group: whether the thought matters

Design: the positions of a split are cut at the quartiles of a measure, those of the last two being each
checkpoint's own. Equal values stay together, so that a measure which is the same at most positions has
fewer and unequal parts, and one that is the same at all of them has none. The price: the last two measures
are parts of the gain itself. A thought that only flattens the prediction gains at surprising tokens and
loses at the others, and a low log p makes both the spread and the loss; the entropy is free of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forethought.lab.evaluation.figures import Measurements
from forethought.lab.evaluation.splits import DrawnPositions
from forethought.lab.statistics import BootstrapInterval

SPLITS = ("all", "marked")
MEASURES = ("entropy", "no_think_nll", "logprob_std")
PARTS = ("lowest", "second", "third", "highest")


def quartile_tables(
    label: str, measured: Measurements, drawn: DrawnPositions, seed: int
) -> list[dict[str, Any]]:
    """One entry per split and measure, its parts under ``splits``; plain numbers by name."""
    entropies_Q = np.array([place.entropy for place in drawn.places])
    found = []
    for split in SPLITS:
        members = list(drawn.members.get(split, ()))
        for measure in MEASURES if members else ():
            values = entropies_Q if measure == "entropy" else measured.values_Q[measure]
            parts = _parts(values, measured, members, seed)
            if len(parts) > 1:
                name = f"{label}: {split} by {measure}"
                found.append({"name": name, "of": split, "by": measure, "splits": parts})
    return found


def _parts(
    values_Q: Any, measured: Measurements, members: Sequence[int], seed: int
) -> dict[str, dict[str, Any]]:
    """The parts of the positions ``members`` that are not empty, in ascending order."""
    positions, values = np.asarray(members), values_Q[members]
    number = np.searchsorted(np.quantile(values, (0.25, 0.5, 0.75)), values)
    return {
        name: _figures(values[number == n], measured, positions[number == n], seed)
        for n, name in enumerate(PARTS)
        if (number == n).any()
    }


def _figures(values: Any, measured: Measurements, chosen: Any, seed: int) -> dict[str, Any]:
    gain = BootstrapInterval.of(measured.values_Q["information_gain"][chosen], seed)
    return {
        "num_positions": len(chosen),
        "from": float(values.min()),
        "to": float(values.max()),
        "no_think_nll": float(measured.values_Q["no_think_nll"][chosen].mean()),
        "information_gain": gain.mean,
        "information_gain_low": gain.low,
        "information_gain_high": gain.high,
    }
