"""Shared contexts on a GPU: equal to rows that repeat them, and how fast, against the device's roofline.

    python -m benchmarks.gpu [--models smollm2-135m qwen3-1.7b] [--rounds 3] [--device cuda]

    equal   log-probs and gradients of shared and of padded rows, float32 and bfloat16
    score   score_continuations: 8 thoughts of 64 tokens at each of 4 positions of documents of 1,024 tokens
    learn   Learner.step on the same thoughts: forward, backward and AdamW

Random models in the shape of SmolLM2-135M and Qwen3-1.7B, bfloat16 with float32 masters. Sized for ten
minutes on one H100 with 80 GB, of which FlexAttention's compilation is a good part and timed apart
(``first_s``). ``--device cpu --models toy`` runs the same code anywhere.

Rates are of wall-clock time, the optimizer and the host's work included: tokens computed, tokens of all
rows with their contexts ("row tokens"), and the share of the roofline (:mod:`benchmarks.roofline`). Exit
status 1: shared and padded rows do not agree.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_thoughts import (
    MAX_TOKENS,
    MODELS,
    SIZES,
    Sizes,
    build_model,
    draw_thoughts,
    learned_trees,
)
from benchmarks.roofline import computed, peak_flops, seconds_of
from forethought.compute.consistency import measure_consistency
from forethought.compute.forms import Forms, note_forms
from forethought.compute.logprob import score_continuations
from forethought.compute.model import LanguageModel
from forethought.compute.packing import Pack, Row, packs_of
from forethought.compute.token_logprobs import Targets, logprobs
from forethought.config.sections import BaselineSection, LearnerSection
from trainer.learner.learner import Learner

SHARED, PADDED = Forms("trees"), Forms("padded")
TOLERANCES = {"float32": (1e-4, 1e-4), "bfloat16": (0.3, 0.1)}
"""Of log-probs in nats, and of gradients relative to their norm."""


def check_equal(name: str, dtype: str, device: str) -> dict[str, Any]:
    """The largest differences between shared and padded rows: log-probs, and gradients by parameter."""
    torch.compiler.reset()
    model = build_model(name, getattr(torch, dtype), device)
    found = measure_consistency(model, model.config, range(model.config.vocab_size), MAX_TOKENS)
    if found.sharing_fault:
        print(f"[{name}] {dtype}: contexts would not be shared: {found.sharing_fault}")
    some = Sizes(1, SIZES[name].document, SIZES[name].thought, 4096, 4096, group=2)
    rows = [thought.learned for thought in draw_thoughts(model, some)]
    (ours, our_grads), (theirs, their_grads) = (
        _logprobs_and_gradients(model, rows, forms, some.learn_tokens) for forms in (SHARED, PADDED)
    )
    differences = {
        "max_difference_nats": max(float((ours[i] - theirs[i]).abs().max()) for i in theirs),
        "max_gradient_difference": max(
            float((our_grads[n] - g).norm() / g.norm().clamp_min(1e-12))
            for n, g in their_grads.items()
        ),
    }
    within = zip(differences.values(), TOLERANCES[dtype], strict=True)
    return differences | {"agrees": all(difference <= limit for difference, limit in within)}


def _logprobs_and_gradients(
    model: Any, rows: list[Row], forms: Forms, max_tokens: int
) -> tuple[dict[int, torch.Tensor], dict[str, torch.Tensor]]:
    """By row; and by parameter, of the rows' log-probs with weights of their own."""
    model.zero_grad()
    by_row: dict[int, torch.Tensor] = {}
    for pack in packs_of(rows, forms, max_tokens, model.device):
        of_pack = logprobs(model, pack, _targets(pack, rows))
        sizes = [rows[i].num_tail for i in pack.rows]
        weights = [
            math.sin(1 + i) for i, size in zip(pack.rows, sizes, strict=True) for _ in range(size)
        ]
        (of_pack * torch.tensor(weights, device=of_pack.device)).sum().backward()  # type: ignore[no-untyped-call]
        by_row |= dict(zip(pack.rows, of_pack.detach().split(sizes), strict=True))
    return by_row, {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def _targets(pack: Pack, rows: list[Row]) -> Targets:
    ids = [token_id for i in pack.rows for token_id in rows[i].target_ids]
    return Targets(torch.tensor(ids, device=pack.input_ids.device))


def measure_scoring(model: Any, sizes: Sizes, num_rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and rates of scoring, shared and padded."""
    thoughts = draw_thoughts(model, sizes)
    queries, rows = [t.query for t in thoughts], [t.scored for t in thoughts]

    def work() -> None:
        score_continuations(model, queries, sizes.score_tokens)

    return _compare(model, work, rows, sizes.score_tokens, 1, num_rounds)


def measure_learning(model: Any, sizes: Sizes, num_rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and rates of a learner's step, shared and padded."""
    thoughts = draw_thoughts(model, sizes)
    section = LearnerSection(learning_rate=1e-6, micro_batch_tokens=sizes.learn_tokens)
    learner = Learner(LanguageModel(model, None, MAX_TOKENS), section, BaselineSection(kind="none"))
    trees = learned_trees(thoughts, model.config.vocab_size)

    def work() -> None:
        if learner.step(trees).skipped:
            raise SystemExit("the step was skipped: its loss or gradient is not finite")

    return _compare(model, work, [t.learned for t in thoughts], sizes.learn_tokens, 3, num_rounds)


def _compare(
    model: Any,
    work: Callable[[], None],
    rows: list[Row],
    max_tokens: int,
    factor: int,
    num_rounds: int,
) -> dict[str, dict[str, float]]:
    """Both sides in turn; the first call of each, which compiles, is timed apart."""
    sides = {"shared": SHARED, "padded": PADDED}
    first_s, seconds = {}, dict.fromkeys(sides, math.inf)
    for i in range(1 + num_rounds):
        for side, forms in sides.items():
            note_forms(model, forms)
            taken_s = seconds_of(work, model.device)
            if i == 0:
                first_s[side] = taken_s
            else:
                seconds[side] = min(seconds[side], taken_s)
    peak = peak_flops(model.device)
    row_tokens = sum(len(row.input_ids) for row in rows)
    results = {}
    for side, forms in sides.items():
        tokens, flops = computed(model, rows, forms, max_tokens)
        results[side] = {
            "seconds": seconds[side], "first_s": first_s[side],
            "tokens_per_s": tokens / seconds[side], "row_tokens_per_s": row_tokens / seconds[side],
            "share_of_peak": factor * flops / seconds[side] / peak,
        }  # fmt: skip
    return results


def main() -> None:
    """Print each comparison, then all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["smollm2-135m", "qwen3-1.7b"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    settings = vars(parser.parse_args())
    device = torch.device(settings["device"])
    cases: dict[str, Any] = {}
    for name in settings["models"]:
        for dtype in TOLERANCES:
            cases[f"equal-{name}-{dtype}"] = case = check_equal(name, dtype, settings["device"])
            print(f"[{name}] {dtype}: shared and padded rows, {case}", flush=True)
        torch.compiler.reset()  # PyTorch compiles eight variants of a function, and then no more
        model = build_model(name, torch.bfloat16, settings["device"])
        for what, measure in (("score", measure_scoring), ("learn", measure_learning)):
            sides = measure(model, SIZES[name], settings["rounds"])
            value = sides["padded"]["seconds"] / sides["shared"]["seconds"]
            cases[f"{what}-{name}"] = {"value": value, **sides}
            for side, of_side in sides.items():
                print(
                    f"[{name}] {what}, {side}: {of_side['seconds']:.3f} s, "
                    f"{of_side['tokens_per_s']:,.0f} tokens/s computed, "
                    f"{of_side['row_tokens_per_s']:,.0f} row tokens/s, "
                    f"{of_side['share_of_peak']:.1%} of peak",
                    flush=True,
                )
    roofline = {"peak_flops": peak_flops(device)}
    print(json.dumps({"benchmark": "gpu", "settings": settings, **roofline, "cases": cases}))
    raise SystemExit(0 if all(case.get("agrees", True) for case in cases.values()) else 1)


if __name__ == "__main__":
    main()
