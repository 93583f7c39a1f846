"""Teacher-forced log-likelihoods of continuations: the only code that scores at temperature 1.

Design: token ids in, natural log-probs out, at temperature 1, in float32 whatever the model's dtype.
Equal queries are scored once, and beginnings are shared; that a query costs less beside others is the price
of nothing but a sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import torch

from forethought.compute.forms import forms_of
from forethought.compute.packing import Pack, Row, packs_of
from forethought.compute.token_logprobs import Predictions, Targets
from forethought.types import Prompting


@dataclass(frozen=True, slots=True)
class Continuation:
    """``continuation_ids`` to be scored after ``prefix_ids`` (at least one token each).

    ``removed_id`` is a token whose mass is removed before normalising: the think-open token on the
    no-think side, without which every thought would earn a spurious -log(1 - p(open)).

    Example:
        ``Continuation((1, 5, 9), (42,), removed_id=39)``
    """

    prefix_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    removed_id: int | None = None

    @classmethod
    def after_thought(
        cls,
        prompting: Prompting,
        context_ids: tuple[int, ...],
        thought_ids: tuple[int, ...],
        closed: bool,
        target_ids_H: tuple[int, ...],
    ) -> Self:
        """The target after context, thought and close (RLP eq. 3)."""
        return cls(prompting.target_prefix(context_ids, thought_ids, closed), target_ids_H)

    @classmethod
    def without_thought(
        cls, prompting: Prompting, context_ids: tuple[int, ...], target_ids_H: tuple[int, ...]
    ) -> Self:
        """The target directly after the context (RLP eq. 4), the think-open token's mass removed."""
        return cls(prompting.no_think_prefix(context_ids), target_ids_H, prompting.open_id)


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """Log-probs of each continuation token in nats, and whether each was the likeliest. Shape [H].

    Example:
        ``ContinuationScore((-0.2,), (True,))``
    """

    logprobs_H: tuple[float, ...]
    greedy_H: tuple[bool, ...]

    @property
    def total(self) -> float:
        """The teacher-forced sum, log p(continuation | prefix)."""
        return sum(self.logprobs_H)


def score_continuations(
    model: Any, queries: Sequence[Continuation], max_batch_tokens: int
) -> list[ContinuationScore]:
    """Score every query; results are in the order of ``queries``, independent of batching.

    What queries share at their beginning is computed once, where the model allows it. A forward pass holds
    at most ``max_batch_tokens`` tokens, padding included (a longer row is computed alone).
    """
    asked = list(dict.fromkeys(queries))
    rows = [Row(q.prefix_ids + q.continuation_ids, len(q.continuation_ids)) for q in asked]
    scores: dict[Continuation, ContinuationScore] = {}
    device = next(iter(model.parameters())).device
    for pack in packs_of(rows, forms_of(model), max_batch_tokens, device):
        of_pack = [asked[i] for i in pack.rows]
        scores |= zip(of_pack, _scored(model, pack, of_pack), strict=True)
    return [scores[query] for query in queries]


@torch.inference_mode()
def _scored(model: Any, pack: Pack, queries: Sequence[Continuation]) -> list[ContinuationScore]:
    chunks = list(Predictions(model, pack).chunks(_targets(queries, pack.places_M.device)))
    logprobs = iter([p for chunk, _ in chunks for p in chunk.tolist()])
    greedy = iter([is_greedy for _, chunk in chunks for is_greedy in chunk.tolist()])
    return [
        ContinuationScore(
            tuple(islice(logprobs, len(q.continuation_ids))),
            tuple(islice(greedy, len(q.continuation_ids))),
        )
        for q in queries
    ]


def _targets(queries: Sequence[Continuation], device: torch.device) -> Targets:
    ids = [token_id for q in queries for token_id in q.continuation_ids]
    removed = [
        -1 if q.removed_id is None else q.removed_id for q in queries for _ in q.continuation_ids
    ]
    return Targets(torch.tensor(ids, device=device), removed_M=torch.tensor(removed, device=device))
