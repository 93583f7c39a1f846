"""The type a model computes in, and what ``model.dtype = auto`` stands for here.

Design: ``auto`` is bfloat16 where the device computes it natively and the model is large enough to gain by
it, else float32. A GPU is asked for its capability. A processor is asked too, and then a matrix product of
the model's width is timed in both types, because having the instructions does not mean that torch uses
them. Products alone overstate the gain of small models, whose other operations are slower in bfloat16: on
two AMX cores a training step gains 1.06 times at hidden size 128, 1.35 at 256 and 2.4 at 576, products 3.3,
6.2 and 5.2. So small models are decided by their size, which leaves to the clock only what is far from the
margin (native 2 to 7 times, emulated below 1): one machine always decides alike. The price is some
milliseconds per load, and float32 for a model of hidden size 200 that might gain a tenth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_MIN_HIDDEN_SIZE = 256
_MIN_SPEEDUP = 1.3
_MAX_TIMED_SIZE = 512  # of the product, which takes 3 ms in float32 on one core
_TIMED_TOKENS = 256
_REPETITIONS = 10
_NATIVE = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # as torch.cpu.get_capabilities says
_LOOPING = frozenset({"rwkv"})


@dataclass(frozen=True, slots=True)
class Precision:
    """A type and why it was chosen.

    Example:
        ``str(Precision("bfloat16", "matrix products are 5x faster here"))``
    """

    dtype: str = "float32"
    reason: str = "as configured"

    def __str__(self) -> str:
        return f"{self.dtype} ({self.reason})"


def choose_precision(
    dtype: str,
    config: Any,
    device: torch.device,
    speedup: Callable[[int], float | None] | None = None,
) -> Precision:
    """The type that ``dtype``, a value of ``model.dtype``, stands for on a device.

    Args:
        dtype: ``float32`` and ``bfloat16`` are taken as they are.
        config: the model's text configuration.
        device: where the model will compute.
        speedup: of bfloat16 in a matrix product of a width, None where the processor lacks it; measured if
            not given.
    """
    if dtype != AUTO:
        return Precision(dtype)
    hidden_size = _hidden_size(config)
    if getattr(config, "model_type", "") in _LOOPING:
        return Precision("float32", "its loop over tokens sums gradients in the model's type")
    if hidden_size < _MIN_HIDDEN_SIZE:
        return Precision("float32", f"bfloat16 gains nothing at hidden size {hidden_size}")
    if device.type == "cuda":
        return _of_gpu(device)
    if device.type != "cpu":
        return Precision("float32", f"bfloat16 is not known to be faster on {device.type}")
    return _of_processor((speedup or product_speedup)(hidden_size))


def slowness(
    dtype: str,
    config: Any,
    device: torch.device,
    speedup: Callable[[int], float | None] | None = None,
) -> str:
    """A sentence if a model computes in bfloat16 and float32 would be faster here; else empty.

    Another machine, a resumed run or the user may have chosen it. Small models are not measured.
    """
    hidden_size = _hidden_size(config)
    if dtype != "bfloat16" or device.type != "cpu" or hidden_size < _MIN_HIDDEN_SIZE:
        return ""
    measured = (speedup or product_speedup)(hidden_size)
    if measured is not None and measured >= 1:
        return ""
    found = _of_processor(measured).reason
    return (
        f"bfloat16 is slow here ({found}); set model.dtype=float32 where the learner runs, unless other "
        "machines do most of the work"
    )


def product_speedup(hidden_size: int) -> float | None:
    """How many times faster this processor multiplies matrices in bfloat16; None if it cannot natively.

    Tokens times a weight of ``hidden_size`` by four times that; the least CPU time of several repetitions
    each, in turn and on one thread: threads that wait for each other measure how busy the machine is.
    """
    if not _is_native():
        return None
    size = min(hidden_size, _MAX_TIMED_SIZE)
    best = dict.fromkeys(DTYPES, float("inf"))
    # No random numbers: the process's generator is the run's.
    operands = {
        name: (
            torch.ones(_TIMED_TOKENS, size, dtype=dtype),
            torch.ones(4 * size, size, dtype=dtype),
        )
        for name, dtype in DTYPES.items()
    }
    with _one_thread(), torch.no_grad():
        for _ in range(_REPETITIONS + 1):  # the first prepares kernels
            for name, (tokens, weight) in operands.items():
                started_s = time.thread_time()
                torch.nn.functional.linear(tokens, weight)
                best[name] = min(best[name], time.thread_time() - started_s)
    return best["float32"] / best["bfloat16"]


def _hidden_size(config: Any) -> int:
    return getattr(config, "hidden_size", None) or 0


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _of_gpu(device: torch.device) -> Precision:
    with torch.cuda.device(device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "native on this GPU")
    return Precision("float32", "this GPU has no bfloat16")


def _of_processor(speedup: float | None) -> Precision:
    if speedup is None:
        return Precision("float32", "this processor has no bfloat16")
    if speedup < _MIN_SPEEDUP:
        return Precision("float32", f"bfloat16 products run at {speedup:.2g}x the speed here")
    return Precision("bfloat16", f"matrix products are {speedup:.0f}x faster here")


def _is_native() -> bool:
    """Whether the processor has instructions for it; a torch that cannot tell leaves it to the clock."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is None or any(capabilities().get(name) for name in _NATIVE)
