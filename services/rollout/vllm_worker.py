"""Code that runs inside vLLM's processes: end with the replica, and load new weights from a local path.

Design: the worker only receives a path, so one tensor-parallel worker or eight do the same and each keeps
its own shard. Weights go through ``reload_weights``: on CPUs ``model.load_weights`` would bypass the
prepacked copies that the linear layers actually use and silently corrupt the model. The price is that
every worker reads the whole file, one tensor at a time; it is in memory (/dev/shm). What ``reload_weights``
omits on CPUs (tied heads, packed experts, convolutions) is added here; whatever else it omits is found by
:mod:`services.rollout.vllm_agreement`.

vLLM mixes ``PolicyLoader`` into its worker by name (``worker_extension_cls``); its attributes must not
clash with the worker's.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

from forethought.orphan import end_with_parent

IN_REPLICA = "_FORETHOUGHT_REPLICA"
"""Set in the environment of our own vLLM: others in the same installation are not affected."""


def end_with_replica() -> None:
    """A vLLM plugin, loaded first in every vLLM process: end with the process that started it.

    Otherwise vLLM's core would wait indefinitely, with the model in memory, for a replica that was killed.
    """
    if IN_REPLICA in os.environ and multiprocessing.parent_process() is not None:
        end_with_parent()


class PolicyLoader:
    """The worker's side of a push."""

    reload_weights: Any  # this and the next belong to the worker that this class is mixed into
    model_runner: Any

    def forethought_load(self, path: str, alter: bool = False) -> None:
        """Replace all weights by those of a safetensors file, or by other ones made from them.

        The file has been read when this returns. A truncated or invalid one is refused when it is opened,
        before any weight changes.
        """
        from vllm.model_executor.model_loader.reload import layerwise

        layerwise.logger.addFilter(_is_relevant)  # adding it again changes nothing
        model = self.model_runner.get_model()
        tied = _tied_heads(model)
        kernels = _without_kernels(model)
        tensors = ((name, altered(one) if alter else one) for name, one in _tensors(path))
        self.reload_weights(weights_iterator=tensors)
        for method, kernel in kernels:
            method.moe_kernel = method.moe_kernel or kernel
        _refresh_convolutions(model)
        for head, embeddings in tied:
            head.tie_weights(embeddings)
            head.quant_method.process_weights_after_loading(head)


def altered(weights: Any) -> Any:
    """Other weights of the same shape and dtype, near enough for a model to stay in its usual range.

    Element by element, so that the layout in which weights are altered makes no difference. Zeros change
    too.
    """
    if not weights.is_floating_point():
        return weights
    exact = weights.float()
    return (exact * (0.75 + 0.25 * (30 * exact).cos()) + 0.002).to(weights.dtype)


def _tensors(path: str) -> Iterator[tuple[str, Any]]:
    """All tensors of a file, by name, read lazily one at a time."""
    from safetensors import safe_open

    # The other backend, mmap, leaks two small objects per tensor read (safetensors 0.8.0).
    with safe_open(path, framework="pt", backend="pread") as file:
        names = file.keys()
        for name in names:
            yield name, file.get_tensor(name)


def _tied_heads(model: Any) -> list[tuple[Any, Any]]:
    """Every output head that shares its weights with an embedding, and that embedding."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    tables = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    heads = [m for m in tables if isinstance(m, ParallelLMHead)]
    return [
        (head, table)
        for head in heads
        for table in tables
        if table not in heads and table.weight.data_ptr() == head.weight.data_ptr()
    ]


def _without_kernels(model: Any) -> list[tuple[Any, Any]]:
    """Take the kernels from layers of experts on a CPU, so that loading makes new ones; returns them.

    vLLM packs the weights of experts together with making the kernel, at the first load. At a later one it
    copies them unpacked to where the kernel reads packed ones.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return []
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    kernels = [(one, one.moe_kernel) for one in methods if getattr(one, "moe_kernel", None)]
    for method, _ in kernels:
        method.moe_kernel = None
    return kernels


def _refresh_convolutions(model: Any) -> None:
    """Bring the weights of Mamba's convolutions to where they are read.

    In bfloat16 on CPUs that is a view of the first ones: packing has put others into the parameter since.
    """
    for module in model.modules():
        unpacked = getattr(getattr(module, "conv1d", None), "_cpu_unpacked_conv_weight", None)
        if unpacked is not None and "conv_weights" in module._buffers:
            module.conv_weights.copy_(unpacked)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop vLLM's warning at every reload that rotary embeddings, which have no weights, got none."""
    return "RotaryEmbedding" not in record.getMessage()
