"""Failures of the device, by what torch says of them."""

from __future__ import annotations

import pytest
import torch

from forethought.compute.device_failures import device_failures
from forethought.errors import EngineLost


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_ran_out_may_suffice_for_less(error: RuntimeError) -> None:
    with pytest.raises(MemoryError, match=r"out of memory: .*CU"), device_failures():
        raise error


def test_memory_of_the_host() -> None:
    with pytest.raises(MemoryError, match="can't allocate memory"), device_failures():
        torch.empty(1 << 60)


@pytest.mark.parametrize("text", ["CUDA error: device-side assert triggered", "NCCL error in: x"])
def test_a_failed_device_is_lost(text: str) -> None:
    with pytest.raises(EngineLost, match=text), device_failures():
        raise RuntimeError(text)


def test_other_errors_are_the_batchs() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), device_failures():
        torch.ones(2, 3) @ torch.ones(2, 3)
