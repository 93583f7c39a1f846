"""Learning from thoughts: their context computed once, against rows that each repeat it.

    python -m benchmarks.learn [--rounds 5]

    [g8]          forward and backward pass over 8 thoughts of 64 tokens after one context of 1,024

CPU seconds on one thread, rounds interleaved, the fastest of each side; memory is the most that a process
of each side held beside its model and gradients. A random Llama of 12M parameters, float32, in which both
sides compute the clipped surrogate of RLP's eq. 8. The naive side pads rows into micro-batches and computes
the vocabulary projection only where a log-prob is needed (:mod:`benchmarks.padded`); it may use the better
of one, two and four rows at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import padded
from forethought.compute.consistency import measure_consistency
from forethought.compute.forms import forms_of, note_forms
from trainer.batch.thought_tree import Branch, ThoughtTree
from trainer.learner.batching import micro_batches
from trainer.learner.loss import batch_loss, policy_logprobs

VOCAB_SIZE, MAX_TOKENS = 4096, 2048
CONTEXT_TOKENS, THOUGHT_TOKENS, GROUP_SIZE = 1024, 64, 8
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
NAIVE_ROWS = (1, 2, 4)  # at a time
CPU = torch.device("cpu")


def build_model() -> Any:
    """A random Llama of 12M parameters, prepared as a loaded model is."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    note_forms(model, measure_consistency(model, config, range(VOCAB_SIZE), MAX_TOKENS).forms)
    return model


def thoughts() -> list[padded.LearnedRow]:
    """The thoughts of one position, in random tokens."""
    draw = random.Random(0)
    context = tuple(draw.choices(range(VOCAB_SIZE), k=CONTEXT_TOKENS))
    return [
        padded.LearnedRow(
            padded.Row(context, tuple(draw.choices(range(VOCAB_SIZE), k=THOUGHT_TOKENS))),
            tuple(draw.uniform(-9.0, -7.0) for _ in range(THOUGHT_TOKENS)),
            advantage=draw.uniform(-1.0, 1.0),
            weight=1 / (GROUP_SIZE * THOUGHT_TOKENS),
        )
        for _ in range(GROUP_SIZE)
    ]


def ours(model: Any, rows: list[padded.LearnedRow]) -> None:
    """The learner's own batches and loss."""
    branches = tuple(
        Branch(
            CONTEXT_TOKENS,
            learned.row.continuation_ids,
            (learned.weight,) * THOUGHT_TOKENS,
            (learned.advantage,) * THOUGHT_TOKENS,
            learned.behaviour_logprobs_H,
            temperature=1.0,
        )
        for learned in rows
    )
    tree = ThoughtTree((), rows[0].row.context_ids, branches=branches)
    for batch in micro_batches([tree], 8192, CPU, forms_of(model)):
        logprobs_M = policy_logprobs(model, batch)
        parts = batch_loss(batch, logprobs_M, clip_low=CLIP_LOW, clip_high=CLIP_HIGH)
        parts.loss.backward()  # type: ignore[no-untyped-call]


def naive(model: Any, rows: list[padded.LearnedRow], num_rows: int) -> None:
    """Micro-batches of so many rows."""
    max_tokens = num_rows * (CONTEXT_TOKENS + THOUGHT_TOKENS)
    padded.learn(model, rows, max_tokens, clip_low=CLIP_LOW, clip_high=CLIP_HIGH)


def gradient(model: Any) -> torch.Tensor:
    """All gradients, flat; none is left on the model."""
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad(set_to_none=True)
    return flat


def cpu_seconds(work: Callable[..., None], *given: Any) -> float:
    """CPU seconds of a piece of work."""
    started_s = time.process_time()
    work(*given)
    return time.process_time() - started_s


def measure(num_rounds: int) -> dict[str, float]:
    """The fastest of each side, and the relative difference between their gradients."""
    model, rows = build_model(), thoughts()
    ours_s, naive_s, difference = [], [], 0.0
    for _ in range(num_rounds):
        ours_s.append(cpu_seconds(ours, model, rows))
        found = gradient(model)
        for num_rows in NAIVE_ROWS:
            naive_s.append(cpu_seconds(naive, model, rows, num_rows))
            expected = gradient(model)
            difference = max(difference, float((found - expected).norm() / expected.norm()))
    fastest = {"ours": min(ours_s), "naive": min(naive_s)}
    return {
        "value": fastest["naive"] / fastest["ours"],
        **fastest,
        "gradient_difference": difference,
    }


def held_mib(side: str) -> float:
    """The most that a process of one side held beside its model and gradients."""
    command = [sys.executable, "-m", "benchmarks.learn", "--held-by", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_held(side: str) -> None:
    """Of this process, in MiB; ``side`` is `ours` or the naive side's number of rows at a time."""
    model, rows = build_model(), thoughts()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = psutil.Process().memory_info().rss
    if side == "ours":
        ours(model, rows)
    else:
        naive(model, rows, int(side))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print((most - before) / 2**20)


def main() -> None:
    """Print the case, then the case as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--held-by", help=argparse.SUPPRESS)
    settings = vars(parser.parse_args())
    torch.set_num_threads(1)
    if side := settings.pop("held_by"):
        print_held(side)
        return
    # First, because a process begins with the peak of the one that starts it.
    held = {"ours_mib": held_mib("ours")}
    held |= {f"naive_{n}_rows_mib": held_mib(str(n)) for n in NAIVE_ROWS}
    case = measure(settings["rounds"]) | held
    print(
        f"[g8] {case['value']:.2f}x: ours {case['ours']:.2f}, naive {case['naive']:.2f} CPU seconds; "
        f"gradients differ by {case['gradient_difference']:.1e}; held beside the model: ours "
        f"{case['ours_mib']:.0f} MiB, naive {case['naive_1_rows_mib']:.0f} (1 row at a time), "
        f"{case['naive_4_rows_mib']:.0f} (4)"
    )
    unit = "CPU seconds, value: naive / ours"
    cases = {"learn[g8]": case | {"unit": unit}}
    print(json.dumps({"benchmark": "learn", "settings": settings, "cases": cases}))


if __name__ == "__main__":
    main()
