"""A rollout replica whose sampling fails at its third batch, as ``SAMPLING`` says: hang or die."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from typing import Any

from services.rollout import torch_engine
from services.rollout.__main__ import main

_sample = torch_engine.sample
_calls = itertools.count(1)


def failing_sample(*args: Any, **kwargs: Any) -> Any:
    if next(_calls) < 3:
        return _sample(*args, **kwargs)
    if os.environ["SAMPLING"] == "die":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    print("hanging", flush=True)
    threading.Event().wait()
    return None


if __name__ == "__main__":
    torch_engine.sample = failing_sample
    sys.exit(main())
