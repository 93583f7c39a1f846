"""The memory estimate against what a micro-batch's forward and backward pass allocate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from forethought.compute import precision
from forethought.compute.forms import Forms
from forethought.config import load_settings
from forethought.types import Document
from tests import tiny
from trainer.__main__ import dry_run
from trainer.batch.thought_tree import trees_of_documents
from trainer.learner.batching import MicroBatch, micro_batches
from trainer.learner.loss import batch_loss, policy_logprobs
from trainer.learner.memory import estimate_memory

GATED: dict[str, Any] = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
    "num_hidden_layers": 3,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**GATED, intermediate_size=344),
    "wide": LlamaConfig(**GATED, intermediate_size=1024, head_dim=64),
    "qwen3": Qwen3Config(**GATED, intermediate_size=384, head_dim=32),
    "gpt2": GPT2Config(
        n_embd=128, n_layer=3, n_head=4, vocab_size=1024, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


def peak_bytes(model: Any, batch: MicroBatch) -> int:
    """The most that was allocated at once beside the model, gradients of parameters excluded."""
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        logprobs = policy_logprobs(model, batch)
        batch_loss(batch, logprobs, clip_low=0.2, clip_high=0.2).loss.backward()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_those_of_a_real_pass(tmp_path: Path, name: str, dtype: str) -> None:
    """1,024 tokens, all trained on."""
    config = CONFIGS[name]
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    documents = [
        Document(str(n), "s", tuple((7 * n + i) % 1000 for i in range(129))) for n in range(8)
    ]
    trees = trees_of_documents(documents)
    (batch,) = micro_batches(trees, 10_000, torch.device("cpu"), Forms("trees"))
    words = [f"model.path={tmp_path}", f"model.dtype={dtype}", "learner.micro_batch_tokens=1024"]
    estimate = estimate_memory(load_settings(None, words, {}))
    assert estimate.activations == pytest.approx(peak_bytes(model, batch), rel=0.1)


def test_logits_in_chunks_are_counted_once(tmp_path: Path) -> None:
    """From 2**26 of them on: 65,536 tokens of this vocabulary."""
    CONFIGS["llama"].save_pretrained(tmp_path)
    words = [f"model.path={tmp_path}", "model.dtype=float32"]
    sizes = [1 << 15, 1 << 16, 1 << 17, 1 << 18]
    found = [
        estimate_memory(
            load_settings(None, [*words, f"learner.micro_batch_tokens={size}"], {})
        ).activations
        for size in sizes
    ]
    assert found[1] == pytest.approx(2 * found[0])
    assert found[3] - found[2] == pytest.approx(2 * (found[2] - found[1]))
    assert 2 * found[1] - found[2] == pytest.approx(12.3 * 2**26)


def test_a_dry_run_counts_a_row_longer_than_a_micro_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a micro-batch of its own: 48 of window, 40 of thought and 2 markers."""
    (tmp_path / "text.txt").write_text("a few words to think about " * 20)
    model = tiny.build_model_directory(tmp_path / "model")
    words = [
        f"model.path={model}", f"run.directory={tmp_path / 'run'}", "corpus.window_tokens=48",
        f"corpus.path={tmp_path / 'text.txt'}", "objective.name=rlp", "auth.open=true",
        "sampling.max_thought_tokens=40",
    ]  # fmt: skip
    lines = []
    for num_tokens in (8, 90, 900):
        changed = load_settings(None, [*words, f"learner.micro_batch_tokens={num_tokens}"], {})
        assert dry_run(changed) == 0
        printed = capsys.readouterr().out.splitlines()
        lines.append(next(line for line in printed if "activations" in line))
        assert "precision: float32 (bfloat16 gains nothing at hidden size 32)" in printed
    assert lines[0] == lines[1] != lines[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_of_auto_is_estimated(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    CONFIGS["llama"].save_pretrained(tmp_path)
    auto, given = (
        load_settings(None, [f"model.path={tmp_path}", f"model.dtype={one}"], {})
        for one in ("auto", dtype)
    )
    expected = estimate_memory(given)
    monkeypatch.setattr(precision, "_MIN_HIDDEN_SIZE", 1)
    monkeypatch.setattr(
        precision, "product_speedup", lambda size: 5.0 if dtype == "bfloat16" else 0.5
    )
    assert estimate_memory(auto) == expected


def test_gradients_are_float32_whatever_the_dtype(tmp_path: Path) -> None:
    CONFIGS["llama"].save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        words = [f"model.path={tmp_path}", f"model.dtype={dtype}"]
        estimate = estimate_memory(load_settings(None, words, {}))
        assert estimate.gradients == 4 * estimate.num_parameters
