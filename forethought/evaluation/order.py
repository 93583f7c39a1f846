"""What an evaluation is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forethought.evaluation.conditions import Wishes
from forethought.evaluation.spent import Unit
from forethought.evaluation.text import Noise
from forethought.run.checkpoints import Checkpoint

Progress = Callable[[str, int, int], None]
"""Told of a stage, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to evaluate, and how. ``is_series``: the checkpoints are those of one run, and laws are fitted.

    Example:
        ``Order(tuple(series(Path("runs/rpt"))), Wishes(), is_series=True)``
    """

    checkpoints: tuple[Checkpoint, ...]
    wishes: Wishes = field(default_factory=Wishes)
    is_series: bool = False
    proxy: Path | None = None
    num_positions: int = 512
    num_documents: int = 512
    k_list: tuple[int, ...] = ()
    noise: Noise = field(default_factory=Noise)
    unit: Unit = "flops"
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
