"""Scoring thoughts: what they share computed once, against rows that each repeat their context.

    python -m benchmarks.score [--rounds 3]

    [g8], [g16]   G thoughts of 64 tokens after one context of 1,024
    [doc16x4]     4 thoughts of 32 tokens at each of 16 positions, evenly over 64 to 512 of one document

CPU seconds on one thread, rounds interleaved, the fastest of each side. A random Qwen3 of 34M parameters,
float32. The naive side pads rows into micro-batches and computes the vocabulary projection only where a
log-prob is needed (:mod:`benchmarks.padded`); it may use the better of one and of four rows at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import padded
from forethought.compute.consistency import measure_consistency
from forethought.compute.forms import note_forms
from forethought.compute.logprob import Continuation, score_continuations

VOCAB_SIZE, MAX_TOKENS = 8192, 2048


def build_model() -> Any:
    """A random Qwen3 of 34M parameters, prepared as a loaded model is."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=MAX_TOKENS,
    )
    model = Qwen3ForCausalLM(config).eval()
    note_forms(model, measure_consistency(model, config, range(VOCAB_SIZE), MAX_TOKENS).forms)
    return model


def cases() -> dict[str, list[Continuation]]:
    """The continuations of each case, in random tokens."""
    draw = random.Random(0)

    def tokens(num: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(VOCAB_SIZE), k=num))

    document = tokens(1024)
    indices = [64 + k * (512 - 64) // 15 for k in range(16)]
    return {
        "g8": [Continuation(document + tokens(64), tokens(1)) for _ in range(8)],
        "g16": [Continuation(document + tokens(64), tokens(1)) for _ in range(16)],
        "doc16x4": [
            Continuation(document[:index] + tokens(32), tokens(1))
            for index in indices
            for _ in range(4)
        ],
    }


def cpu_seconds(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """CPU seconds of a piece of work, and its result."""
    started_s = time.process_time()
    result = work()
    return time.process_time() - started_s, result


def measure(model: Any, queries: list[Continuation], num_rounds: int) -> dict[str, float]:
    """The fastest of each side, and the largest difference between their log-probs."""
    rows = [padded.Row(q.prefix_ids, q.continuation_ids) for q in queries]
    longest = max(len(row.context_ids) + len(row.continuation_ids) for row in rows)

    def ours() -> list[float]:
        return [scored.total for scored in score_continuations(model, queries, 8192)]

    def naive(num_rows: int) -> list[float]:
        return [sum(of_row) for of_row in padded.score(model, rows, num_rows * longest)]

    seconds: dict[str, list[float]] = {"ours": [], "naive": []}
    difference = 0.0
    for _ in range(num_rounds):
        ours_s, totals = cpu_seconds(ours)
        seconds["ours"].append(ours_s)
        for num_rows in (1, 4):
            naive_s, expected = cpu_seconds(lambda num=num_rows: naive(num))  # type: ignore[misc]
            seconds["naive"].append(naive_s)
            of_round = max(abs(a - b) for a, b in zip(totals, expected, strict=True))
            difference = max(difference, of_round)
    fastest = {side: min(of_side) for side, of_side in seconds.items()}
    return {
        "value": fastest["naive"] / fastest["ours"],
        **fastest,
        "max_difference_nats": difference,
    }


def main() -> None:
    """Print each case, then all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    settings = vars(parser.parse_args())
    torch.set_num_threads(1)
    model = build_model()
    results = {}
    for name, queries in cases().items():
        results[name] = case = measure(model, queries, settings["rounds"])
        print(
            f"[{name}] {case['value']:.2f}x: ours {case['ours']:.2f}, naive {case['naive']:.2f} CPU "
            f"seconds, log-probs within {case['max_difference_nats']:.1e} nats"
        )
    print(json.dumps({"benchmark": "score", "settings": settings, "cases": results}))


if __name__ == "__main__":
    main()
