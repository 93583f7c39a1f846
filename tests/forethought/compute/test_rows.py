"""The shared forward pass: which arguments the model gets, and which logits are returned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forethought.compute.rows import pad_left, tail_logits

CPU = torch.device("cpu")


class Recorder:
    """Keeps what it was called with; its logits count upward over positions."""

    def __call__(self, **given: Any) -> SimpleNamespace:
        self.given = given
        return self.forward(**given)

    def logits(self, input_ids: torch.Tensor) -> SimpleNamespace:
        num_rows, width = input_ids.shape
        positions = torch.arange(width, dtype=torch.float64).expand(num_rows, width)
        return SimpleNamespace(logits=positions[..., None].expand(-1, -1, 5))


class Current(Recorder):
    def forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        use_cache: bool,
        cache: Any = None,
    ) -> SimpleNamespace:
        return self.logits(input_ids)


class Older(Recorder):
    def forward(
        self, input_ids: Any, attention_mask: Any, use_cache: bool, past_key_values: Any = None
    ) -> SimpleNamespace:
        return self.logits(input_ids)


@pytest.mark.parametrize(("model", "name"), [(Current(), "cache"), (Older(), "past_key_values")])
def test_the_cache_has_the_name_that_the_model_knows(model: Recorder, name: str) -> None:
    rows, cache = pad_left([(1, 2, 3), (4,)], CPU), object()
    tail_logits(model, rows, 1, cache)
    assert model.given[name] is cache
    assert model.given["use_cache"] is True
    assert ("position_ids" in model.given) is isinstance(model, Current)
    tail_logits(model, rows, 1)
    assert name not in model.given
    assert model.given["use_cache"] is False


def test_the_last_logits_come_back_in_float32() -> None:
    logits = tail_logits(Current(), pad_left([(1, 2, 3), (4,)], CPU), 2)
    assert (logits.shape, logits.dtype) == ((2, 2, 5), torch.float32)
    assert logits[:, :, 0].tolist() == [[1.0, 2.0], [1.0, 2.0]]
