"""Sampling all thoughts of documents: the torch engine against transformers' ``generate``.

    python -m benchmarks.sampling [--context 512] [--thought 32] [--group 8]

    sampling   G thoughts after each of two contexts
    doc16x4    16 positions of one document, evenly over an eighth to all of it, 4 thoughts each

Thoughts per CPU second on one thread, rounds interleaved. ``generate`` repeats the context for every
thought before the prefill; it is given micro-batches of contexts of similar length, with which it is
fastest here. A random Llama of 11M parameters, float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.padded import micro_batches
from forethought.compute.forms import Forms, note_forms
from forethought.compute.sampling import SampleRequest, derive_seed, sample

VOCAB_SIZE, NUM_CONTEXTS, NUM_ROUNDS = 4096, 2, 3
NUM_POSITIONS, POSITION_GROUP = 16, 4
PEER_BATCH_TOKENS = 8192  # of the peer's micro-batches

TokenIds = tuple[int, ...]


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
    model = LlamaForCausalLM(config).eval()
    note_forms(model, Forms("trees", "trees"))  # what loading it from a directory finds
    return model


def cpu_seconds(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def random_text(num_tokens: int) -> TokenIds:
    return tuple(torch.randint(0, VOCAB_SIZE, (num_tokens,)).tolist())


def positions_of(document: TokenIds) -> list[TokenIds]:
    """The contexts of evenly spaced positions, the last of them the whole document."""
    first = len(document) // 8
    step = (len(document) - first) / (NUM_POSITIONS - 1)
    return [document[: first + round(k * step)] for k in range(NUM_POSITIONS)]


def generate(model: Any, contexts: Sequence[TokenIds], thought: int, group: int) -> None:
    """The peer: rows of similar length, padded on the left."""
    costs = [group * (len(context) + thought) for context in contexts]
    for indices in micro_batches(costs, PEER_BATCH_TOKENS):
        rows = [contexts[i] for i in indices]
        width = max(map(len, rows))
        model.generate(
            torch.tensor([(0,) * (width - len(row)) + row for row in rows]),
            attention_mask=torch.tensor(
                [(0,) * (width - len(row)) + (1,) * len(row) for row in rows]
            ),
            max_new_tokens=thought,
            do_sample=True,
            num_return_sequences=group,
            pad_token_id=0,
        )


def measure(
    model: Any, contexts: Sequence[TokenIds], thought: int, group: int
) -> dict[str, float | str]:
    requests = [
        SampleRequest(row, tuple(derive_seed(i, g) for g in range(group)), thought, 1.0, ())
        for i, row in enumerate(contexts)
    ]
    rounds = [
        (
            cpu_seconds(lambda: sample(model, requests)),
            cpu_seconds(lambda: generate(model, contexts, thought, group)),
        )
        for _ in range(NUM_ROUNDS)
    ]
    num_thoughts = len(contexts) * group
    ours, peer = (num_thoughts / statistics.median(times) for times in zip(*rounds, strict=True))
    return {"value": ours / peer, "ours": ours, "peer": peer, "unit": "thoughts per CPU second"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--thought", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    settings = vars(parser.parse_args())
    torch.set_num_threads(1)
    context, thought = settings["context"], settings["thought"]
    model = build_model(context + thought)
    contexts = [random_text(context) for _ in range(NUM_CONTEXTS)]
    cases = {
        "sampling": measure(model, contexts, thought, settings["group"]),
        "doc16x4": measure(model, positions_of(random_text(context)), thought, POSITION_GROUP),
    }
    for name, case in cases.items():
        print(
            f"{name}: ours {case['ours']:.2f}, generate {case['peer']:.2f} thoughts per CPU second"
        )
    print(json.dumps({"benchmark": "sampling", "settings": settings, "cases": cases}))


if __name__ == "__main__":
    main()
