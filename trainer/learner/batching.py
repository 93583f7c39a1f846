"""From thought trees to the padded rows of forward passes.

Design: every branch currently becomes a separate row prefixed with the trunk's context, which is simple
and exact but computes the trunk again for each thought. Packing a trunk once for all its branches would go
into this module. Rows of similar length share a micro-batch under a token budget, and weights are already
normalised over the whole batch, so gradients of micro-batches simply add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forethought.compute.rows import (
    NO_LIMIT,
    PaddedRows,
    pad_left,
    pad_left_values,
    row_batches,
)
from trainer.batch.thought_tree import Branch, ThoughtTree


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, and [B, H] arrays for the last H tokens of each row.

    ``targets_BH[b, h]`` is predicted by the logits at tail position h of row b. Padding has weight 0.
    Temperatures are the sampler's where the surrogate weight is not 0, and 1 elsewhere.

    Example:
        ``MicroBatch(rows, targets, weights, advantages, behaviour, nll_weights, temperatures)``
    """

    rows: PaddedRows
    targets_BH: torch.Tensor
    weights_BH: torch.Tensor
    advantages_BH: torch.Tensor
    behaviour_logprobs_BH: torch.Tensor
    nll_weights_BH: torch.Tensor
    temperatures_BH: torch.Tensor

    @property
    def num_tail(self) -> int:
        """H, the number of logits needed per row."""
        return self.targets_BH.shape[1]


@dataclass(frozen=True, slots=True)
class _Row:
    token_ids_T: tuple[int, ...]
    num_learned: int  # tail length: from the first token with a weight to the end
    weights: tuple[float, ...]
    advantages: tuple[float, ...]
    behaviour_logprobs: tuple[float, ...]
    nll_weights: tuple[float, ...]
    temperature: float


def micro_batches(
    trees: Sequence[ThoughtTree],
    max_tokens: int,
    device: torch.device,
    limit_tokens: int = NO_LIMIT,
) -> list[MicroBatch]:
    """All rows of the trees, in micro-batches of at most ``max_tokens`` tokens including padding.

    Rows longer than ``limit_tokens`` are alone.
    """
    rows = [row for tree in trees for row in _rows(tree)]
    lengths = [len(row.token_ids_T) for row in rows]
    return [
        _collate([rows[index] for index in indices], device)
        for indices in row_batches(lengths, lengths, max_tokens, limit_tokens)
    ]


def num_row_tokens(batches: Sequence[MicroBatch]) -> int:
    """Tokens that the forward passes compute, excluding padding."""
    return sum(int(batch.rows.attention_mask.sum()) for batch in batches)


def _rows(tree: ThoughtTree) -> list[_Row]:
    rows = [_branch_row(tree, branch) for branch in tree.branches]
    if any(tree.nll_weights_N):
        rows.append(_trunk_row(tree))
    return rows


def _branch_row(tree: ThoughtTree, branch: Branch) -> _Row:
    nll_weights_T = branch.nll_weights_T or (0.0,) * len(branch.token_ids_T)
    weighed = zip(branch.weights_T, nll_weights_T, strict=True)
    skipped = next(i for i, weights in enumerate(weighed) if any(weights))
    num_learned = len(branch.token_ids_T) - skipped
    return _Row(
        token_ids_T=tree.head_ids + tree.trunk_ids_N[: branch.index] + branch.token_ids_T,
        num_learned=num_learned,
        weights=branch.weights_T[skipped:],
        advantages=branch.advantages_T[skipped:],
        behaviour_logprobs=branch.behaviour_logprobs_T[skipped:],
        nll_weights=nll_weights_T[skipped:],
        temperature=branch.temperature,
    )


def _trunk_row(tree: ThoughtTree) -> _Row:
    num_learned = len(tree.trunk_ids_N) - (0 if tree.head_ids else 1)
    nothing = (0.0,) * num_learned
    return _Row(
        token_ids_T=tree.head_ids + tree.trunk_ids_N,
        num_learned=num_learned,
        weights=nothing,
        advantages=nothing,
        behaviour_logprobs=nothing,
        nll_weights=tree.nll_weights_N[-num_learned:],
        temperature=1.0,
    )


def _collate(rows: list[_Row], device: torch.device) -> MicroBatch:
    width = max(row.num_learned for row in rows)
    targets = pad_left([row.token_ids_T[-row.num_learned :] for row in rows], device).input_ids

    def values(arrays: list[tuple[float, ...]]) -> torch.Tensor:
        return pad_left_values(arrays, width, device)

    weights_BH = values([row.weights for row in rows])
    temperatures_B1 = torch.tensor([[row.temperature] for row in rows], device=device)
    return MicroBatch(
        # The last token of a row predicts nothing, so it is not an input.
        rows=pad_left([row.token_ids_T[:-1] for row in rows], device),
        targets_BH=targets,
        weights_BH=weights_BH,
        advantages_BH=values([row.advantages for row in rows]),
        behaviour_logprobs_BH=values([row.behaviour_logprobs for row in rows]),
        nll_weights_BH=values([row.nll_weights for row in rows]),
        temperatures_BH=torch.where(weights_BH != 0, temperatures_B1, 1.0),
    )
