"""Architectures that vLLM holds in another form: it samples from new weights what transformers computes.

The weights are published as the learner publishes them. Widths are those that vLLM's CPU kernels take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forethought.compute.weights import as_saved, named_weights, serialise
from forethought.errors import InvalidInput
from forethought.types import Document, Position, Prompting, Rollout, Sampling, Task
from services.rollout.vllm_engine import VllmEngine
from tests import tiny, vllm_engines

pytestmark = [pytest.mark.asyncio(loop_scope="session"), *vllm_engines.MARKS]

_COMMON: dict[str, Any] = {
    "vocab_size": tiny.VOCAB_SIZE, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": tiny.EOS_ID, "initializer_range": 0.2, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_key_value_heads": 1, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "mixtral": _EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": _EXPERTS | {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 48},
    "granitemoehybrid": _EXPERTS | {
        "layer_types": ["mamba", "attention"], "num_local_experts": 4, "shared_intermediate_size": 48,
        "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16,
        "mamba_expand": 2, "mamba_chunk_size": 8,
    },
    "gpt_oss": _EXPERTS | {"head_dim": 32, "num_local_experts": 4, "sliding_window": 16},
}  # fmt: skip
STARTED_ANEW = ["gpt_oss"]
"""vLLM loads their experts and sinks in a way that its reload does not see."""
TRUNK = tuple(20 + (7 * i) % 200 for i in range(30))
TASK = Task(
    0, 1, 0, 0, "rlp", "{}", Document("d", "s", TRUNK), (Position(24, TRUNK[24:25]),),
    Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,)), Sampling(4, 16, 1.0, ()), 3,
)  # fmt: skip


def build(name: str, seed: int, **given: Any) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **_COMMON | MODELS[name] | given)
    return AutoModelForCausalLM.from_config(config).float().eval()  # type: ignore[no-untyped-call]


def publish(model: Any, directory: Path) -> Path:
    """The snapshot of a model, as its learner would publish it."""
    model.save_pretrained(directory)  # its configuration; the weights are overwritten
    tiny.build_tokenizer().save_pretrained(directory)
    payload = serialise(as_saved(model, named_weights(model)))
    (directory / "model.safetensors").write_bytes(payload)
    return directory


@torch.no_grad()
def largest_error(model: Any, rollout: Rollout) -> float:
    assert rollout.error is None
    prefix = TRUNK[:24] + TASK.prompting.bridge_ids
    found = 0.0
    for thought in rollout.thoughts_KG[0]:
        logits = model(torch.tensor([prefix + thought.token_ids_L])).logits[0, len(prefix) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(thought.token_ids_L)[:, None])[
            :, 0
        ]
        ours = torch.tensor(thought.behaviour_logprobs_L)
        found = max(found, float((logprobs - ours).abs().max()))
    return found


@pytest.mark.parametrize("name", MODELS)
async def test_new_weights_are_sampled_as_transformers_computes_them(
    name: str, tmp_path: Path
) -> None:
    models = [build(name, seed) for seed in (1, 2)]
    directories = [publish(model, tmp_path / str(i)) for i, model in enumerate(models)]
    engine = vllm_engines.new_engine()
    try:
        served = (0, 1) if name in STARTED_ANEW else (0, 1, 0)
        for version, which in enumerate(served, start=1):
            await engine.load(tiny.manifest("policy", version=version), directories[which])
            (rollout,) = await engine.generate([TASK])
            assert largest_error(models[which], rollout) < 1e-4
            assert largest_error(models[1 - which], rollout) > 1e-1
            spans = [thought.version_spans for thought in rollout.thoughts_KG[0]]
            assert {span.version for of_one in spans for span in of_one} == {version}
        assert engine._held is not None
        assert engine._held.changes_in_place is (name not in STARTED_ANEW)
    finally:
        await engine.close()


async def test_a_model_that_vllm_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """vLLM takes the number of key-value heads from any configuration that has it; GPT-NeoX ignores it."""
    directory = publish(build("gpt_neox", 1, num_key_value_heads=1), tmp_path)
    engine: VllmEngine = vllm_engines.new_engine()
    try:
        with pytest.raises(
            InvalidInput, match=r"compute GPTNeoX.*log-probs differ by .*engine=torch"
        ):
            await engine.load(tiny.manifest("policy"), directory)
        assert engine.serving is None
    finally:
        await engine.close()
