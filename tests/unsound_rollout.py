"""A rollout replica that computes another function than the learner, as ``FAULT`` says.

temperature: it samples at another one than it was asked for, from the beginning. flip: its weights are
wrong from the second version on.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forethought.types import WeightManifest
from services.rollout import torch_engine
from services.rollout.__main__ import main

_requests = torch_engine.sample_requests
_load = torch_engine.TorchEngine.load


def wrong_requests(task: Any) -> Any:
    return [replace(r, temperature=2 * r.temperature) for r in _requests(task)]


async def wrong_load(
    engine: torch_engine.TorchEngine, manifest: WeightManifest, directory: Path
) -> None:
    is_flip = engine.serving is not None
    await _load(engine, manifest, directory)
    if is_flip:
        with engine._served.hold() as serving, torch.no_grad():
            for weight in serving.language_model.model.parameters():
                weight.mul_(1.5)


def apply(fault: str, patch: Any = setattr) -> None:
    """Make every torch engine of this process faulty; ``patch`` sets an attribute."""
    if fault == "temperature":
        patch(torch_engine, "sample_requests", wrong_requests)
    else:
        patch(torch_engine.TorchEngine, "load", wrong_load)


if __name__ == "__main__":
    apply(os.environ["FAULT"])
    sys.exit(main())
