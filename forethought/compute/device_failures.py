"""Failures of the device under torch, told apart from those of one batch.

Design: torch raises ``RuntimeError`` for most of them, so they are recognised by their text. After an error
of CUDA every later call fails as well, whatever it computes; memory that ran out may suffice for less work.
The price: the texts are torch's, and a new one counts as a failure of the batch until it is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from forethought.errors import EngineLost

_NO_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_DEVICE = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "NCCL error", "HIP error")


@contextmanager
def device_failures() -> Iterator[None]:
    """Raise a failure of the device inside the block as such.

    Raises:
        MemoryError: it has not enough memory for this work.
        EngineLost: it is of no use to this process any more.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(part in text for part in _NO_MEMORY):
            raise MemoryError(f"out of memory: {text.splitlines()[0]}") from error
        if any(part in text for part in _DEVICE):
            raise EngineLost(
                f"the device failed ({text.splitlines()[0]}); this process has to be restarted"
            ) from error
        raise
