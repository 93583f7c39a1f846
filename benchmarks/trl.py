"""RLP as a whole, from sampling to the optimizer step, against the same on TRL's GRPOTrainer.

    python -m benchmarks.trl [--cases c512 c1024] [--rounds 2] [--steps 2] [--micro-batch 8]

Needs TRL, which the ``dev`` extra holds (``pip install "trl>=1.16,<2"``). Thoughts per CPU second, float32,
one thread for each process, a random Qwen3 of 33.6M parameters with a vocabulary of 8,192; a step is of 4
contexts of C tokens with 8 thoughts of T tokens each: [c512] C = 512, T = 32; [c1024] C = 1024, T = 64.

Ours: a real run, the CPU seconds of learner, replicas, Redis and supervisor added up
(:mod:`benchmarks.whole_run`). TRL: one process (:mod:`benchmarks.trl_peer`), "stock" and "tuned". Both
sample with transformers models at temperature 1 until T tokens, reward each thought by RLP's gain against a
moving average of the model, and take one AdamW step a batch. Each round starts both anew; the first step of
each warms up and is not measured. Memory is the peak of the largest process, and of all ours added up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.trl_model import write_model, write_windows
from benchmarks.whole_run import ENVIRONMENT, cost_of_steps

GROUP, NUM_CONTEXTS = 8, 4
NUM_THOUGHTS = GROUP * NUM_CONTEXTS
CASES = {"c512": (512, 32), "c1024": (1024, 64)}
VARIANTS = ("stock", "tuned")
_GIB = 1 << 30


def ours(case: str, settings: dict[str, Any], model: Path, scratch: Path) -> dict[str, float]:
    """CPU seconds of one step of a real run, with memory and the length of the thoughts."""
    context, thought = CASES[case]
    corpus = scratch / "windows.jsonl"
    write_windows(corpus, NUM_CONTEXTS * (1 + settings["steps"]), context)
    cost = cost_of_steps(
        (
            f"model.path={model}",
            "model.dtype=float32",  # as the peer
            f"corpus.path={corpus}",
            f"corpus.window_tokens={context + 1}",
            "corpus.eos=never",
            'objective.parameters={positions = "marked"}',
            f"sampling.group_size={GROUP}",
            f"sampling.max_thought_tokens={thought}",
            f"learner.batch_tasks={NUM_CONTEXTS}",
        ),
        scratch / "run",
        settings["steps"],
    )
    print(f"  {case} ours by process:", _spelled(cost.cpu_s), "CPU s a step", flush=True)
    return {
        "cpu_s": cost.total_cpu_s,
        "peak_bytes": max(cost.peak_bytes.values()),
        "all_bytes": sum(cost.peak_bytes.values()),
        "thought_tokens": cost.thought_tokens,
    }


def peer(
    variant: str, case: str, settings: dict[str, Any], model: Path, scratch: Path
) -> dict[str, float]:
    """The same of TRL, in a process of its own."""
    context, thought = CASES[case]
    given = {
        "model_path": str(model),
        "variant": variant,
        "context_tokens": context,
        "thought_tokens": thought,
        "group_size": GROUP,
        "num_contexts": NUM_CONTEXTS,
        "num_steps": settings["steps"],
        "micro_batch": settings["micro_batch"],
        "scratch": str(scratch),
    }
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.trl_peer", json.dumps(given)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    cost: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return cost


def measure(case: str, settings: dict[str, Any], model: Path) -> dict[str, Any]:
    """All sides of a case, round by round: thoughts per CPU second, and ours over the stock trainer."""
    costs: dict[str, list[dict[str, float]]] = {}
    for number in range(settings["rounds"]):
        for side in ("ours", *settings["variants"]):
            with tempfile.TemporaryDirectory() as scratch:
                place = (case, settings, model, Path(scratch))
                cost = ours(*place) if side == "ours" else peer(side, *place)
            costs.setdefault(side, []).append(cost)
            print(f"  {case} round {number + 1}, {side}: {_line(cost)}", flush=True)
    rates = {
        side: NUM_THOUGHTS / statistics.median(cost["cpu_s"] for cost in of_side)
        for side, of_side in costs.items()
    }
    peaks = {side: max(cost["peak_bytes"] for cost in of_side) for side, of_side in costs.items()}
    return {
        "value": round(rates["ours"] / rates[settings["variants"][0]], 2),
        **{f"over_{v}": round(rates["ours"] / rates[v], 2) for v in settings["variants"]},
        **{side: round(rate, 3) for side, rate in rates.items()},
        "unit": "thoughts per CPU second",
        "peak_gib": {side: round(peak / _GIB, 2) for side, peak in peaks.items()},
        "peak_all_ours_gib": round(max(c["all_bytes"] for c in costs["ours"]) / _GIB, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a round")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows, of TRL")
    settings = vars(parser.parse_args())
    if importlib.util.find_spec("trl") is None:
        sys.exit('benchmarks.trl: TRL is not installed; install it: pip install "trl>=1.16,<2"')
    cases = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_model(model)
        for case in settings.pop("cases"):
            cases[case] = measure(case, settings, model)
            print(f"{case}: {cases[case]}", flush=True)
    print(json.dumps({"benchmark": "trl", "settings": settings, "cases": cases}))


def _spelled(cost: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {used:.2f}" for role, used in cost.items())


def _line(cost: Mapping[str, float]) -> str:
    return (
        f"{cost['cpu_s']:.2f} CPU s a step, thoughts of {cost['thought_tokens']:.1f} tokens, "
        f"peak {cost['peak_bytes'] / _GIB:.2f} GiB"
    )


if __name__ == "__main__":
    main()
