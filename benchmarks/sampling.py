"""Sampling G thoughts after one context: the embedded engine against transformers' ``generate``.

    python -m benchmarks.sampling [--context 512] [--thought 32] [--group 8]

Thoughts per CPU second on one thread, rounds interleaved. ``generate`` repeats the context G times
before the prefill; the embedded engine prefills it once. A random Llama of 11M parameters, float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forethought.compute.sampling import SampleRequest, derive_seed, sample

VOCAB_SIZE, NUM_CONTEXTS, NUM_ROUNDS = 4096, 2, 3


def build_model(length: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=length,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def cpu_seconds(work: Callable[[], None]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def measure(model: Any, context: int, thought: int, group: int) -> dict[str, float]:
    contexts = torch.randint(0, VOCAB_SIZE, (NUM_CONTEXTS, context))
    requests = [
        SampleRequest(tuple(row), tuple(derive_seed(i, g) for g in range(group)), thought, 1.0, ())
        for i, row in enumerate(contexts.tolist())
    ]

    def ours() -> None:
        sample(model, requests)

    def peer() -> None:
        model.generate(
            contexts,
            attention_mask=torch.ones_like(contexts),
            max_new_tokens=thought,
            do_sample=True,
            num_return_sequences=group,
            pad_token_id=0,
        )

    rounds = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(NUM_ROUNDS)]
    num_thoughts = NUM_CONTEXTS * group
    return {
        "ours": num_thoughts / statistics.median(o for o, _ in rounds),
        "peer": num_thoughts / statistics.median(p for _, p in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--thought", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    settings = vars(parser.parse_args())
    torch.set_num_threads(1)
    rates = measure(build_model(settings["context"] + settings["thought"]), **settings)
    case = {"value": rates["ours"] / rates["peer"], **rates, "unit": "thoughts per CPU second"}
    print(f"ours {rates['ours']:.2f}, generate {rates['peer']:.2f} thoughts per CPU second")
    print(json.dumps({"benchmark": "sampling", "settings": settings, "cases": {"sampling": case}}))


if __name__ == "__main__":
    main()
