"""The rollout service's queue handler: which tasks the served weights may sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import pytest

from forethought import wire
from forethought.queue import Message
from forethought.replica.handler import Readiness
from forethought.types import Document, Position, Prompting, Sampling, Task, WeightManifest
from forethought.weights.receiver import WeightReceiver
from services.rollout.engine import Engine
from services.rollout.handler import RolloutHandler

TASK = Task(
    4, 2, 0, 3, "rlp", "{}", Document("d", "s", (20, 21, 22)), (Position(2, (22,)),),
    Prompting((), (39,), (40,)), Sampling(2, 4), seed=1, run_id="a" * 16,
)  # fmt: skip
OWN = WeightManifest("policy", 2, 3, "9f", "4c", "float32", 1, "a" * 16)


@dataclass
class Serving:
    """An engine that serves these weights and samples nothing."""

    serving: WeightManifest | None


@pytest.mark.parametrize(
    ("served", "readiness"),
    [
        (None, Readiness.WAIT),
        (OWN, Readiness.READY),
        (replace(OWN, version=2), Readiness.WAIT),
        (replace(OWN, epoch=1, version=9), Readiness.WAIT),
        (replace(OWN, epoch=3, version=0), Readiness.FOREIGN),
        (replace(OWN, run_id="b" * 16), Readiness.FOREIGN),
        (replace(OWN, run_id="b" * 16, epoch=1), Readiness.FOREIGN),
        (replace(OWN, run_id=""), Readiness.FOREIGN),
    ],
)
def test_only_weights_of_the_run_and_epoch_may_sample(
    served: WeightManifest | None, readiness: Readiness
) -> None:
    handler = RolloutHandler(cast(Engine, Serving(served)), cast(WeightReceiver, None))
    assert handler.readiness(Message(4, 2, wire.encode_task(TASK))) is readiness
