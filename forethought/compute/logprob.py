"""Teacher-forced log-likelihoods of continuations: the only code that scores at temperature 1.

Design: token ids in, natural log-probs out, at temperature 1, in float32 whatever the model's dtype.
Each row is prefilled separately; prefilling a shared prefix once can be added behind this function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from forethought.compute.rows import pad_left, padded_tokens, row_batches, tail_logits
from forethought.types import Prompting

_LOGITS_PER_TOKEN = 1024


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

    Padded batches hold at most ``max_batch_tokens`` tokens (a longer row is batched alone); a row's
    logits count too, as one token per 1,024 of them, so that a large vocabulary does not exhaust memory.
    """
    width = 1 + model.get_input_embeddings().num_embeddings // _LOGITS_PER_TOKEN
    costs = [len(q.prefix_ids) + width * len(q.continuation_ids) for q in queries]
    results: list[ContinuationScore | None] = [None] * len(queries)
    lengths = [len(q.prefix_ids) + len(q.continuation_ids) for q in queries]
    for indices in row_batches(lengths, costs, max_batch_tokens, padded_tokens(model)):
        for index, scored in zip(
            indices, _score_batch(model, [queries[i] for i in indices]), strict=True
        ):
            results[index] = scored
    return [scored for scored in results if scored is not None]


@torch.inference_mode()
def _score_batch(model: Any, queries: list[Continuation]) -> list[ContinuationScore]:
    device = next(iter(model.parameters())).device
    # No prediction after a row's last token is needed, so it is not an input.
    rows = pad_left([(q.prefix_ids + q.continuation_ids)[:-1] for q in queries], device)
    num_tail = max(len(q.continuation_ids) for q in queries)
    logits = tail_logits(model, rows, num_tail)  # [B, H, V]
    for index, query in enumerate(queries):
        if query.removed_id is not None:
            logits[index, :, query.removed_id] = float("-inf")
    targets = _targets(queries, num_tail).to(device)
    logprobs = torch.log_softmax(logits, dim=-1).gather(2, targets[..., None])[..., 0]
    greedy = logits.argmax(dim=-1) == targets
    return [
        ContinuationScore(tuple(row[-size:]), tuple(hits[-size:]))
        for row, hits, size in zip(
            logprobs.tolist(),
            greedy.tolist(),
            (len(q.continuation_ids) for q in queries),
            strict=True,
        )
    ]


def _targets(queries: list[Continuation], num_tail: int) -> torch.Tensor:
    padded = [(0,) * (num_tail - len(q.continuation_ids)) + q.continuation_ids for q in queries]
    return torch.tensor(padded, dtype=torch.long)
