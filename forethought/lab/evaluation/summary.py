"""The report of an evaluation: a plain dictionary, as eval.json has it.

Design: everything that table and figure show is in it, with what the numbers mean and what they were made
with, so that a file says by itself what was measured. The price is a file of some thousand lines for a
long series.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import exp, isfinite
from typing import Any

from forethought import __version__
from forethought.lab.evaluation.figures import Measurements, differences, split_figures
from forethought.lab.evaluation.questions import Questions
from forethought.lab.evaluation.request import Conditions, EvalRequest
from forethought.lab.evaluation.scaling import fit_law, limit_interval, why_no_fit
from forethought.lab.evaluation.splits import NAMES, THRESHOLDS, DrawnPositions
from forethought.lab.evaluation.text import TOP_K, Noise
from forethought.run.checkpoints import Checkpoint

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """A checkpoint with what was measured; ``compute`` in the request's unit, None outside of runs.

    Example:
        ``CheckpointResult(checkpoint, measured, compute=3.2e12, plain_nll=1.1)``
    """

    checkpoint: Checkpoint
    measured: Measurements
    compute: float | None
    plain_nll: float


def summarise(
    request: EvalRequest,
    given: Conditions,
    questions: Questions,
    examined: Sequence[CheckpointResult],
    k_list: Sequence[int],
) -> Report:
    """The report of what was examined, in the order's order."""
    drawn = questions.drawn
    return {
        **_circumstances(request, given, questions),
        "definitions": DEFINITIONS,
        "splits": _split_entries(request, drawn),
        "checkpoints": [_entry(e, drawn, k_list, request.seed) for e in examined],
        "differences": {
            e.checkpoint.label: {
                name: differences(examined[0].measured, e.measured, members, request.seed)
                for name, members in drawn.members.items()
            }
            for e in examined[1:]
        },
        "laws": _laws(examined, drawn, request.seed) if request.is_series else {},
    }


def _circumstances(request: EvalRequest, given: Conditions, questions: Questions) -> dict[str, Any]:
    """What it was made with: enough to make it again."""
    corpus, objective = given.settings.corpus, given.objective
    parameters = objective.config.model_dump(mode="json")
    return {
        "versions": versions(),
        "seed": request.seed,
        "conditions_from": given.origin,
        "corpus": {
            "paths": [source.path for source in corpus.resolved_sources()],
            "note": given.corpus_note,
            "num_documents": len(questions.documents),
            "window_tokens": questions.window_tokens,
        },
        "proxy": questions.proxy,
        "objective": {"name": type(objective).__name__, "parameters": parameters},
        "sampling": asdict(questions.sampling),
        "compute_unit": request.unit,
        "accuracy": "reward_share" if objective.prediction_tokens else "think_accuracy",
    }


def _split_entries(request: EvalRequest, drawn: DrawnPositions) -> dict[str, dict[str, Any]]:
    words = split_definitions(request.noise)
    return {
        name: {
            "definition": words[name],
            "num_candidates": drawn.num_candidates[name],
            "num_positions": len(members),
        }
        for name, members in drawn.members.items()
    }


def _entry(
    examined: CheckpointResult, drawn: DrawnPositions, k_list: Sequence[int], seed: int
) -> dict[str, Any]:
    nll = examined.plain_nll if isfinite(examined.plain_nll) else None
    return {
        "label": examined.checkpoint.label,
        "model": str(examined.checkpoint.model),
        "step": examined.checkpoint.step,
        "compute": examined.compute,
        "plain_text_nll": nll,
        "perplexity": None if nll is None else exp(nll),
        "splits": {
            name: split_figures(examined.measured, members, k_list, seed)
            for name, members in drawn.members.items()
        },
    }


def _laws(
    examined: Sequence[CheckpointResult], drawn: DrawnPositions, seed: int
) -> dict[str, dict[str, Any]]:
    """For every split and both accuracies the fitted law, or why there is none."""
    compute = [e.compute or 0.0 for e in examined]
    return {
        name: {
            metric: _law(
                compute, [e.measured.values_Q[metric][list(members)] for e in examined], seed
            )
            for metric in ("think_accuracy", "reward_share")
            if metric in examined[0].measured.values_Q
        }
        for name, members in drawn.members.items()
    }


def _law(compute: list[float], accuracy_SQ: list[Any], seed: int) -> dict[str, Any]:
    means = [float(values.mean()) for values in accuracy_SQ]
    if reason := why_no_fit(compute, means):
        return {"reason": reason}
    interval = limit_interval(compute, accuracy_SQ, seed)
    low, high = interval or (None, None)
    return asdict(fit_law(compute, means)) | {"limit_low": low, "limit_high": high}


DEFINITIONS = {
    "think_nll": "nats: -E_c log p(target | context, c), the mean over the G thoughts",
    "marginal_nll": "nats: -log mean_c p(target | context, c); at most think_nll (Jensen)",
    "no_think_nll": "nats: -log p(target | context), the think-open token's mass removed",
    "information_gain": "no_think_nll - think_nll; _low and _high: 95 % bootstrap interval over positions",
    "think_accuracy": "share of thoughts after which the target is the likeliest token (greedy); thoughts "
    "are sampled at sampling.temperature",
    "no_think_accuracy": "share of positions where the target is the likeliest token without a thought",
    "reward_share": "share of thoughts followed by a right prediction, sampled at sampling.temperature: "
    "its bytes are the text's next ones and end where a token ends (RPT, eq. 2)",
    "pass_at": "k: chance that after one of k thoughts the target is the likeliest token; unbiased",
    "reward_pass_at": "k: chance that one of k predictions is right; unbiased",
    "thought_tokens_mean": "tokens of a thought, a sampled close token included; _p95: 95th percentile",
    "truncated_share": "share of thoughts that hit their budget and were closed by force",
    "patterns": "per_thought: share of thoughts with a keyword of the kind; per_1000_tokens: keywords in "
    "1,000 tokens of thought (RPT's six kinds)",
    "perplexity": "exp of the mean no-think NLL of every token of a window but its first, over all windows",
    "differences": "a checkpoint less the first, at the same positions with the same random numbers; low "
    "and high: 95 % bootstrap interval over positions",
    "compute": "flops: parameters x (6 x tokens learned + 2 x tokens sampled + 2 x tokens scored), by "
    "metrics.jsonl; tokens learned; or steps",
    "laws": "P(C) = amplitude / C ** exponent + limit, P an accuracy (RPT); limit_low and limit_high: 95 % "
    "bootstrap interval over positions",
}


def split_definitions(noise: Noise) -> dict[str, str]:
    """What every split is."""
    by_entropy = {
        name: f"entropy of the proxy >= {least} nats over its {TOP_K} likeliest tokens"
        for name, least in THRESHOLDS.items()
    }
    words = {
        "all": "every position",
        **by_entropy,
        "marked": "positions that the corpus marks",
        "noise": noise.definition,
    }
    return {name: words[name] for name in NAMES}


def versions() -> dict[str, str]:
    """Of what computed the figures."""
    libraries = {name: version(name) for name in ("numpy", "torch", "transformers")}
    return {"forethought": __version__, "python": platform.python_version(), **libraries}
