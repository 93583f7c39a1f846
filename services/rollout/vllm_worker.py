"""Code that runs inside vLLM's processes: end with the replica, and load new weights from a local path.

Design: the worker only receives a path, so one tensor-parallel worker or eight do the same and each keeps
its own shard. Weights go through ``reload_weights``: on CPUs ``model.load_weights`` would bypass the
prepacked copies that the linear layers actually use and silently corrupt the model. The price is that every
worker reads the whole file, one tensor at a time; it is in memory (/dev/shm).

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

    def forethought_load(self, path: str) -> None:
        """Replace all weights by those of a safetensors file; it has been read when this returns.

        A truncated or invalid file is refused when it is opened, before any weight changes.
        """
        from vllm.model_executor.model_loader.reload import layerwise

        layerwise.logger.addFilter(_is_relevant)  # adding it again changes nothing
        tied = _tied_heads(self.model_runner.get_model())
        self.reload_weights(weights_iterator=_tensors(path))
        for head, embeddings in tied:
            head.tie_weights(embeddings)
            head.quant_method.process_weights_after_loading(head)


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


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop vLLM's warning at every reload that rotary embeddings, which have no weights, got none."""
    return "RotaryEmbedding" not in record.getMessage()
