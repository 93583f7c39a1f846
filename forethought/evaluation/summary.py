"""The report of an evaluation: a plain dictionary, as eval.json has it.

Design: everything that table and figure show is in it, with what the numbers mean and what they were made
with, so that a file says by itself what was measured. The price is a file of some thousand lines for a
long series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, isfinite
from typing import Any

from forethought.evaluation.conditions import Conditions
from forethought.evaluation.definitions import DEFINITIONS, split_definitions, versions
from forethought.evaluation.figures import Measurements, differences, split_figures
from forethought.evaluation.order import Order
from forethought.evaluation.questions import Questions
from forethought.evaluation.scaling import fit_law, limit_interval, why_no_fit
from forethought.evaluation.splits import Draw
from forethought.run.checkpoints import Checkpoint

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Examined:
    """A checkpoint with what was measured; ``compute`` in the order's unit, None outside of runs.

    Example:
        ``Examined(checkpoint, measured, compute=3.2e12, plain_nll=1.1)``
    """

    checkpoint: Checkpoint
    measured: Measurements
    compute: float | None
    plain_nll: float


def summarise(
    order: Order,
    given: Conditions,
    questions: Questions,
    examined: Sequence[Examined],
    k_list: Sequence[int],
) -> Report:
    """The report of what was examined, in the order's order."""
    drawn = questions.drawn
    return {
        **_circumstances(order, given, questions),
        "definitions": DEFINITIONS,
        "splits": _split_entries(order, drawn),
        "checkpoints": [_entry(e, drawn, k_list, order.seed) for e in examined],
        "differences": {
            e.checkpoint.label: {
                name: differences(examined[0].measured, e.measured, members, order.seed)
                for name, members in drawn.members.items()
            }
            for e in examined[1:]
        },
        "laws": _laws(examined, drawn, order.seed) if order.is_series else {},
    }


def _circumstances(order: Order, given: Conditions, questions: Questions) -> dict[str, Any]:
    """What it was made with: enough to make it again."""
    corpus, objective = given.settings.corpus, given.objective
    parameters = objective.config.model_dump(mode="json")
    return {
        "versions": versions(),
        "seed": order.seed,
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
        "compute_unit": order.unit,
        "accuracy": "reward_share" if objective.prediction_tokens else "think_accuracy",
    }


def _split_entries(order: Order, drawn: Draw) -> dict[str, dict[str, Any]]:
    words = split_definitions(order.noise)
    return {
        name: {
            "definition": words[name],
            "num_candidates": drawn.num_candidates[name],
            "num_positions": len(members),
        }
        for name, members in drawn.members.items()
    }


def _entry(examined: Examined, drawn: Draw, k_list: Sequence[int], seed: int) -> dict[str, Any]:
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


def _laws(examined: Sequence[Examined], drawn: Draw, seed: int) -> dict[str, dict[str, Any]]:
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
