"""The reward service's answers, recomputed one row at a time with plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class PlainModel:
    """A model directory, without padding, batches or caches."""

    def __init__(self, directory: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._model.eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._model(input_ids=torch.tensor([list(token_ids)])).logits[0]
        return logits

    def logprobs(
        self, prefix: Sequence[int], continuation: Sequence[int], removed_id: int | None = None
    ) -> list[float]:
        logits = self.logits([*prefix, *continuation])[len(prefix) - 1 : -1].clone()
        if removed_id is not None:
            logits[:, removed_id] = float("-inf")
        logprobs = logits.log_softmax(dim=-1)
        return [float(logprobs[i, token]) for i, token in enumerate(continuation)]

    def entropies(
        self, token_ids: Sequence[int], top_k: int, renormalise: bool = False
    ) -> list[float]:
        result = []
        for row in self.logits(token_ids)[:-1].softmax(dim=-1).double():
            top = sorted(row.tolist(), reverse=True)[:top_k]
            total = sum(top) if renormalise else 1.0
            p = torch.tensor(top, dtype=torch.float64) / total
            result.append(float(-(p * p.log()).sum()))
        return result

    def score(self, item: dict[str, Any], markers: tuple[int, int]) -> list[float]:
        """log p(target | context, thought) for every thought of an item of texts."""
        context, target = self.ids(item["context"]), self.ids(item["target"])
        return [
            sum(self.logprobs([*context, markers[0], *self.ids(t), markers[1]], target))
            for t in item["thoughts"]
        ]
