"""A rollout replica whose engine fails, as ``FAILURE`` says.

hang, die: in its third batch. stuck: while it applies its second weights.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from typing import Any

from services.rollout import torch_engine
from services.rollout.__main__ import main

_sample = torch_engine.sample
_load = torch_engine.TorchEngine.load
_calls = itertools.count(1)


def failing_sample(*args: Any, **kwargs: Any) -> Any:
    if os.environ["FAILURE"] == "stuck" or next(_calls) < 3:
        return _sample(*args, **kwargs)
    if os.environ["FAILURE"] == "die":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    print("hanging", flush=True)
    threading.Event().wait()
    return None


async def failing_load(self: Any, manifest: Any, directory: Any) -> None:
    if os.environ["FAILURE"] == "stuck" and self.serving is not None:
        print("stuck", flush=True)
        await asyncio.Event().wait()
    await _load(self, manifest, directory)


if __name__ == "__main__":
    torch_engine.sample = failing_sample
    torch_engine.TorchEngine.load = failing_load  # type: ignore[method-assign]
    sys.exit(main())
