"""What runs inside every worker process of vLLM: read new weights from a local path and take them.

Design: the worker sees a path and nothing else, so one tensor-parallel worker or eight do the same and
each keeps its own shard. Weights go through ``reload_weights``: on CPUs ``model.load_weights`` would
write past the prepacked copies that the linear layers really use and corrupt the model silently. The
price is that every worker reads the whole file; it lies in memory (/dev/shm).

vLLM mixes this class into its worker by name (``worker_extension_cls``); the names below must not be
names of the worker. Nothing here is imported by the serving process.
"""

from __future__ import annotations

import logging
from typing import Any


class PolicyLoader:
    """The worker's end of a push."""

    reload_weights: Any  # these two are of the worker that this class is mixed into
    model_runner: Any

    def forethought_load(self, path: str) -> None:
        """Replace all weights by those of a safetensors file; it has been read when this returns.

        The file is read whole before the first weight changes, so an unreadable one changes nothing.
        """
        from safetensors.torch import load_file
        from vllm.model_executor.model_loader.reload import layerwise

        layerwise.logger.addFilter(_is_worth_telling)  # adding it again changes nothing
        weights, tied = load_file(path), _tied_heads(self.model_runner.get_model())
        self.reload_weights(weights_iterator=iter(weights.items()))
        for head, embeddings in tied:
            head.tie_weights(embeddings)
            head.quant_method.process_weights_after_loading(head)


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


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """vLLM warns at every change that rotary embeddings, which have no weights, got none."""
    return "RotaryEmbedding" not in record.getMessage()
