"""A whole step on a real model and real text, against the same step without any sharing.

    python -m benchmarks.real_step --model DIR --corpus FILE [--rounds 2] [--steps 1]

CPU seconds of a step of 16 documents with 8 thoughts of 48 tokens each, one position a document. DIR is a
transformers causal language model, such as SmolLM2-135M (``HuggingFaceTB/SmolLM2-135M``, Apache-2.0); the
think markers are added to it. FILE is a corpus of ``{"text": …}`` lines, such as GSM8K: a question, a new
line, and its answer without the ``<<…>>`` calculations.

Ours: a real run with its defaults, all processes added up (:mod:`benchmarks.whole_run`).
Peer: one process, float32, every thought a padded row with its own context (:mod:`benchmarks.padded`). It
takes the run's tasks from its journal, and for each step
  - samples as many thoughts after the same contexts,
  - scores the run's thoughts with the policy, and their contexts with the moving average,
  - computes the gradient of RLP's loss on them in micro-batches, and updates the weights and the average.
Both learners hold micro-batches of as many tokens (a longer row or tree is one of its own), so that their
memory is alike. The peer has no queues, no transport and no checkpoints. How far its rewards of the first
step, before any update, are from the run's is printed too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from transformers.utils import logging

from benchmarks.real_step_peer import DECAY, LEARNING_RATE
from benchmarks.whole_run import ENVIRONMENT, cost_of_steps
from forethought.compute.model import add_markers, load_language_model

NUM_DOCUMENTS, GROUP, THOUGHT_TOKENS, WINDOW_TOKENS = 16, 8, 48, 512
_GIB = 1 << 30


def prepare(model: Path, into: Path) -> None:
    """Write the model in float32 with think markers, the same for both sides."""
    logging.disable_progress_bar()
    language_model = load_language_model(model, "float32", "cpu")
    add_markers(language_model, "<think>", "</think>")
    language_model.model.save_pretrained(into)
    language_model.tokenizer.save_pretrained(into)


def ours(
    model: Path, corpus: Path, num_steps: int, micro_batch_tokens: int, directory: Path
) -> dict[str, float]:
    """CPU seconds of a step of a real run, and its peak memory."""
    cost = cost_of_steps(
        (
            f"model.path={model}",
            f"corpus.path={corpus}",
            f"corpus.window_tokens={WINDOW_TOKENS}",
            f"sampling.group_size={GROUP}",
            f"sampling.max_thought_tokens={THOUGHT_TOKENS}",
            f"learner.batch_tasks={NUM_DOCUMENTS}",
            f"learner.learning_rate={LEARNING_RATE}",
            f"learner.micro_batch_tokens={micro_batch_tokens}",
            f"baseline.decay={DECAY}",
        ),
        directory,
        num_steps,
    )
    print("  by process:", {role: round(s, 2) for role, s in cost.cpu_s.items()}, flush=True)
    return {
        "cpu_s": cost.total_cpu_s,
        "peak_bytes": max(cost.peak_bytes.values()),
        "thought_tokens": cost.thought_tokens,
    }


def peer(model: Path, directory: Path, micro_batch_tokens: int) -> dict[str, float]:
    """The same for the padded steps, in a process of its own."""
    given = json.dumps([str(model), str(directory), micro_batch_tokens])
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.real_step_peer", given],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cost: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a transformers directory")
    parser.add_argument("--corpus", type=Path, required=True, help='lines of {"text": …}')
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="measured steps of a round")
    parser.add_argument("--micro-batch-tokens", type=int, default=512, help="of both learners")
    settings = vars(parser.parse_args())
    case = measure(settings)
    print(
        json.dumps(
            {"benchmark": "real_step", "settings": settings, "cases": {"smollm2": case}},
            default=str,
        )
    )


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides, round by round; the ratio of their CPU seconds."""
    costs: dict[str, list[dict[str, float]]] = {"ours": [], "padded": []}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        prepare(settings["model"], model)
        for number in range(1, settings["rounds"] + 1):
            run = Path(scratch) / f"run-{number}"
            budget = settings["micro_batch_tokens"]
            costs["ours"].append(ours(model, settings["corpus"], settings["steps"], budget, run))
            costs["padded"].append(peer(model, run, budget))
            for side, of_side in costs.items():
                print(f"  round {number}, {side}: {_line(of_side[-1])}", flush=True)
    used_s = {side: median(cost["cpu_s"] for cost in of_side) for side, of_side in costs.items()}
    peaks = {side: max(cost["peak_bytes"] for cost in of_side) for side, of_side in costs.items()}
    return {
        "value": round(used_s["padded"] / used_s["ours"], 2),
        **{side: round(seconds, 2) for side, seconds in used_s.items()},
        "unit": "CPU seconds a step",
        "peak_gib": {side: round(peak / _GIB, 2) for side, peak in peaks.items()},
        "reward_difference": max(cost["reward_difference"] for cost in costs["padded"]),
    }


def _line(cost: Mapping[str, float]) -> str:
    return (
        f"{cost['cpu_s']:.2f} CPU s a step, thoughts of {cost['thought_tokens']:.1f} tokens, "
        f"peak {cost['peak_bytes'] / _GIB:.2f} GiB"
    )


if __name__ == "__main__":
    main()
