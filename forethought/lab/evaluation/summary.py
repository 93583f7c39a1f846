"""The report of an evaluation: a plain dictionary, the contents of eval.json.

Design: it contains everything that table and figure show, with the definitions of the metrics and the
conditions, so that the file is self-explanatory. The price is a file of some thousand lines for a long
series.
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
from forethought.lab.evaluation.quartiles import quartile_tables
from forethought.lab.evaluation.questions import Questions
from forethought.lab.evaluation.request import Conditions, EvalRequest
from forethought.lab.evaluation.scaling import fit_law, limit_interval, why_no_fit
from forethought.lab.evaluation.splits import NAMES, THRESHOLDS, DrawnPositions
from forethought.lab.evaluation.text import TOP_K, Noise
from forethought.run.checkpoints import Checkpoint

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """The measurements of a checkpoint; ``compute`` in the request's unit, None outside of runs.

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
    results: Sequence[CheckpointResult],
    k_list: Sequence[int],
) -> Report:
    """The report over the checkpoint results, in the request's order."""
    drawn = questions.drawn
    return {
        **_circumstances(request, given, questions),
        "definitions": DEFINITIONS,
        "splits": _split_entries(request, drawn),
        "checkpoints": [_entry(e, drawn, k_list, request.seed) for e in results],
        "differences": {
            e.checkpoint.label: {
                name: differences(results[0].measured, e.measured, members, request.seed)
                for name, members in drawn.members.items()
            }
            for e in results[1:]
        },
        "laws": _laws(results, drawn, request.seed) if request.is_series else {},
    }


def _circumstances(request: EvalRequest, given: Conditions, questions: Questions) -> dict[str, Any]:
    """The conditions of the evaluation: enough to reproduce it."""
    corpus, objective = given.settings.corpus, given.objective
    parameters = objective.config.model_dump(mode="json")
    return {
        "versions": versions(),
        "seed": request.seed,
        "dtype": questions.dtype,
        "conditions_from": given.origin,
        "corpus": {
            "paths": [source.place for source in corpus.resolved_sources()],
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
    result: CheckpointResult, drawn: DrawnPositions, k_list: Sequence[int], seed: int
) -> dict[str, Any]:
    nll = result.plain_nll if isfinite(result.plain_nll) else None
    return {
        "label": result.checkpoint.label,
        "model": str(result.checkpoint.model),
        "step": result.checkpoint.step,
        "compute": result.compute,
        "plain_text_nll": nll,
        "perplexity": None if nll is None else exp(nll),
        "splits": {
            name: split_figures(result.measured, members, k_list, seed)
            for name, members in drawn.members.items()
        },
        "quartiles": quartile_tables(result.checkpoint.label, result.measured, drawn, seed),
    }


def _laws(
    results: Sequence[CheckpointResult], drawn: DrawnPositions, seed: int
) -> dict[str, dict[str, Any]]:
    """The fitted law for every split and both accuracies, or the reason why there is none."""
    compute = [e.compute or 0.0 for e in results]
    return {
        name: {
            metric: _law(
                compute, [e.measured.values_Q[metric][list(members)] for e in results], seed
            )
            for metric in ("think_accuracy", "reward_share")
            if metric in results[0].measured.values_Q
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
    "no_think_nll": "nats: -log p(target | context), with the think-open token's mass removed",
    "information_gain": "no_think_nll - think_nll; _low and _high: 95 % bootstrap interval over positions",
    "logprob_std": "nats: standard deviation of log p(target | context, c) over the G thoughts",
    "quartiles": "a split's positions by quartiles of the proxy's entropy, or of the checkpoint's own "
    "no_think_nll or logprob_std; from and to: the values in each; equal values stay together",
    "think_accuracy": "share of thoughts after which the target is the likeliest token (greedy); thoughts "
    "are sampled at sampling.temperature",
    "no_think_accuracy": "share of positions where the target is the likeliest token without a thought",
    "reward_share": "share of thoughts followed by a correct prediction, sampled at sampling.temperature: "
    "its bytes are the next bytes of the text and end on a token boundary (RPT, eq. 2)",
    "pass_at": "k: probability that after at least one of k thoughts the target is the likeliest token; "
    "unbiased",
    "reward_pass_at": "k: probability that at least one of k predictions is correct; unbiased",
    "thought_tokens_mean": "tokens per thought, including a sampled close token; _p95: 95th percentile",
    "truncated_share": "share of thoughts that hit the budget and were force-closed",
    "patterns": "per_thought: share of thoughts with a keyword of the pattern; per_1000_tokens: keywords "
    "per 1,000 thought tokens (RPT's six patterns)",
    "perplexity": "exp of the mean no-think NLL over the tokens of all windows, excluding each first token",
    "differences": "a checkpoint minus the first, at the same positions with the same random numbers; low "
    "and high: 95 % bootstrap interval over positions",
    "compute": "flops: parameters x (6 x trained tokens + 2 x sampled tokens + 2 x scored tokens), from "
    "metrics.jsonl; trained tokens; or steps",
    "laws": "P(C) = amplitude / C ** exponent + limit, P an accuracy (RPT); limit_low and limit_high: 95 % "
    "bootstrap interval over positions",
}


def split_definitions(noise: Noise) -> dict[str, str]:
    """The definition of every split."""
    by_entropy = {
        name: f"entropy of the proxy >= {least} nats over its {TOP_K} likeliest tokens"
        for name, least in THRESHOLDS.items()
    }
    words = {
        "all": "every position: uniform over the text",
        **by_entropy,
        "marked": "positions that the corpus marks",
        "noise": noise.definition,
    }
    return {name: words[name] for name in NAMES}


def versions() -> dict[str, str]:
    """Versions of the software that computed the metrics."""
    libraries = {name: version(name) for name in ("numpy", "torch", "transformers")}
    return {"forethought": __version__, "python": platform.python_version(), **libraries}
