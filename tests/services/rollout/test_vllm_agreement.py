"""What is made of a vLLM that computes something else, with stand-ins for it; no vLLM is needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from forethought.errors import EngineLost, InvalidInput
from forethought.types import Task, Thought, WeightManifest
from services.rollout.vllm_agreement import is_comparable, takes_new_weights
from services.rollout.vllm_worker import altered
from tests import tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model_directory(tmp_path_factory.mktemp("model"), "llama")


class StandIn:
    """A model of transformers in the place of vLLM; ``stale`` parameters stay when weights change."""

    def __init__(self, directory: Path, stale: str = "", dies: bool = False) -> None:
        self.manifest: WeightManifest = tiny.manifest("policy")
        self.vocabulary, self.max_length_tokens = tiny.VOCAB_SIZE, 24
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        self.is_restored = False
        self._stale, self._dies = stale, dies

    async def sample(self, tasks: Sequence[Task]) -> list[tuple[tuple[Thought, ...], ...]]:
        if self._dies:
            raise EngineLost("vLLM's core process died")
        (task,) = tasks
        assert task.document.token_ids_N[-1] < self.vocabulary
        prefix = task.document.token_ids_N[: task.positions_K[0].index]
        assert len(prefix) + task.sampling.max_thought_tokens < self.max_length_tokens
        ids = tuple(range(40, 40 + task.sampling.max_thought_tokens))
        logits = self.model(torch.tensor([prefix + ids])).logits[0, len(prefix) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        return [((Thought(ids, tuple(logprobs.tolist()), (), closed=False),),)]

    async def take(
        self, manifest: WeightManifest, file: Path, *, keep_kv: bool, alter: bool = False
    ) -> None:
        assert not keep_kv
        self.is_restored = not alter and manifest == self.manifest
        for name, parameter in self.model.named_parameters():
            if alter and not (self._stale and self._stale in name):
                parameter.data = altered(parameter.data)


async def test_a_vllm_that_agrees_takes_new_weights(directory: Path) -> None:
    held = StandIn(directory)
    assert await takes_new_weights(held, directory, directory / "model.safetensors")
    assert held.is_restored


@pytest.mark.parametrize(
    "stale", ["layers.1.self_attn.v_proj", "layers.0.input_layernorm", "embed_tokens", "lm_head"]
)
async def test_weights_that_stay_behind_are_seen(
    directory: Path, stale: str, caplog: pytest.LogCaptureFixture
) -> None:
    held = StandIn(directory, stale)
    with caplog.at_level(logging.WARNING):
        assert not await takes_new_weights(held, directory, directory / "model.safetensors")
    (message,) = (record.getMessage() for record in caplog.records)
    assert "new weights of LlamaForCausalLM" in message
    assert "% of their spread" in message
    assert "starts anew at every change of weights" in message


async def test_another_function_is_refused(directory: Path) -> None:
    held = StandIn(directory)
    held.model.config.rms_norm_eps = held.model.model.norm.variance_epsilon = 0.1
    with pytest.raises(InvalidInput, match=r"not compute LlamaForCausalLM .*rollout\.engine=torch"):
        await takes_new_weights(held, directory, directory / "model.safetensors")


async def test_a_vllm_that_dies_sampling_is_refused(directory: Path) -> None:
    held = StandIn(directory, dies=True)
    with pytest.raises(InvalidInput, match=r"dies at its first thought .*core process died"):
        await takes_new_weights(held, directory, directory / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_altering_changes_every_weight_whatever_its_layout(dtype: torch.dtype) -> None:
    weights = (torch.randn(48, 32, generator=torch.Generator().manual_seed(0)) / 5).to(dtype)
    weights[0] = 0
    assert (altered(weights) != weights).float().mean() > 0.98
    assert torch.equal(altered(weights.T.contiguous()).T, altered(weights))
    assert altered(weights).dtype == dtype
    assert altered(torch.tensor([3])).item() == 3


def test_large_and_quantized_models_are_not_compared() -> None:
    manifest = tiny.manifest("policy")
    assert is_comparable(manifest, {"quantization": None})
    assert not is_comparable(manifest, {"quantization": "fp8"})
