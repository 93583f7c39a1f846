"""Two log-probs of the same sampled tokens: the sampler's and the learner's, and how far apart they may be.

Design: the measure is the mean of the absolute differences per token. Not the largest one: with rounding
alone a mixture-of-experts model now and then chooses another expert for a token, which is then tenths of a
nat off, while all others agree. Not the difference of the means either: it averages to nearly nothing where
errors go both ways.

                tolerance   sound engines, mean per token            a fault
    float32     0.01        1e-6 to 1e-5                             0.1 to 2 nats: another temperature,
    bfloat16    0.2         0.01 to 0.05, single tokens up to 0.2    weights not or partly replaced, a
                                                                     stale cache

All at temperature 1: logits are divided by the temperature and their rounding with them, so the tolerance
is too. The price of a wide margin: what is wrong by less passes; the metrics ``ratio_max`` and
``effective_sample_share`` show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch

from forethought.compute.forms import forms_of
from forethought.compute.packing import Row, packs_of
from forethought.compute.token_logprobs import Targets, logprobs
from trainer.replay.excerpt import Excerpt

_FLOAT32_NATS = 0.01
_BFLOAT16_NATS = 0.2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean log-probs of sampled tokens under both, and the mean of their absolute differences, in nats.

    Example:
        ``Comparison(version=1, num_tokens=32, behaviour=-2.31, policy=-3.12, difference=0.91)``
    """

    version: int
    num_tokens: int
    behaviour: float
    policy: float
    difference: float

    def is_within(self, tolerance_nats: float) -> bool:
        """Whether both may be the same function; not if a difference is not a number."""
        return self.difference <= tolerance_nats

    def __str__(self) -> str:
        return (
            f"over {self.num_tokens} tokens sampled by policy version {self.version}, its mean log-prob is "
            f"{self.behaviour:.4f} and the learner's {self.policy:.4f}, {self.difference:.2g} nats per "
            "token apart on average"
        )


def tolerance_of(model: Any, temperature: float) -> float:
    """The largest mean difference in nats of a sound sampler, by the dtype that the model computes in."""
    dtype = next(iter(model.parameters())).dtype
    return (_FLOAT32_NATS if dtype == torch.float32 else _BFLOAT16_NATS) / temperature


def compare(
    model: Any, excerpts: Sequence[Excerpt], version: int, max_batch_tokens: int
) -> Comparison:
    """Replay at least one excerpt through the learner's ``model``, whose weights are of ``version``."""
    behaviour = [logprob for each in excerpts for logprob in each.behaviour_logprobs_L]
    replayed = replayed_logprobs(model, excerpts, max_batch_tokens)
    policy = [logprob for logprobs_L in replayed for logprob in logprobs_L]
    differences = [abs(theirs - ours) for theirs, ours in zip(behaviour, policy, strict=True)]
    return Comparison(version, len(policy), fmean(behaviour), fmean(policy), fmean(differences))


@torch.no_grad()  # not inference_mode: what a model caches is used by the training step too
def replayed_logprobs(
    model: Any, excerpts: Sequence[Excerpt], max_batch_tokens: int
) -> list[list[float]]:
    """The model's log-probs of the excerpts' tokens at their temperatures, in the order of ``excerpts``.

    Rows are computed in the form in which they are trained on.
    """
    found: dict[int, list[float]] = {}
    rows = [Row(excerpt.row_ids, len(excerpt.token_ids_L)) for excerpt in excerpts]
    device = next(iter(model.parameters())).device
    for pack in packs_of(rows, forms_of(model).with_gradient, max_batch_tokens, device):
        targets = _targets([excerpts[i] for i in pack.rows], device)
        values = iter(logprobs(model, pack, targets).tolist())
        found |= {i: list(islice(values, rows[i].num_tail)) for i in pack.rows}
    return [found[i] for i in range(len(excerpts))]


def _targets(excerpts: Sequence[Excerpt], device: torch.device) -> Targets:
    ids = [token_id for each in excerpts for token_id in each.token_ids_L]
    temperatures = [each.temperature for each in excerpts for _ in each.token_ids_L]
    return Targets(torch.tensor(ids, device=device), torch.tensor(temperatures, device=device))
