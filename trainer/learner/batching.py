"""From thought trees to the micro-batches of forward and backward passes.

Design: every branch becomes a row with the trunk's context before it, and rows are packed so that what
they share is computed once (:mod:`forethought.compute.packing`), also across the trees of a batch. Arrays
are flat, one entry per prediction. Weights are already normalised over the whole batch, so gradients of
micro-batches simply add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from forethought.compute.forms import Forms
from forethought.compute.packing import Pack, Row, packs_of
from forethought.compute.token_logprobs import Targets
from trainer.batch.thought_tree import Branch, ThoughtTree


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The inputs of one forward pass and arrays over its M predictions.

    ``sequences_M`` numbers the row that each prediction belongs to. Temperatures are the sampler's where
    the surrogate weight is not 0, and 1 elsewhere. ``num_row_tokens`` are those of whole rows: what rows
    share counts in each.

    Example:
        ``MicroBatch(pack, targets, sequences, weights, advantages, behaviour, nll_weights, 8_704)``
    """

    pack: Pack
    targets: Targets
    sequences_M: torch.Tensor
    weights_M: torch.Tensor
    advantages_M: torch.Tensor
    behaviour_logprobs_M: torch.Tensor
    nll_weights_M: torch.Tensor
    num_row_tokens: int


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
    forms: Forms | None = None,
) -> list[MicroBatch]:
    """All rows of the trees, in micro-batches of at most ``max_tokens`` computed tokens, padding included.

    ``forms`` are those of the model that will compute them (None: padded rows).
    """
    rows = [row for tree in trees for row in _rows(tree)]
    packed = [Row(row.token_ids_T, row.num_learned) for row in rows]
    return [
        _collate(pack, [rows[i] for i in pack.rows], device)
        for pack in packs_of(packed, forms or Forms(), max_tokens, device)
    ]


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


def _collate(pack: Pack, rows: list[_Row], device: torch.device) -> MicroBatch:
    def flat(values: Iterator[Sequence[float]]) -> torch.Tensor:
        return torch.tensor([v for of_row in values for v in of_row], dtype=torch.float32).to(
            device
        )

    weights_M = flat(row.weights for row in rows)
    temperatures_M = flat((row.temperature,) * row.num_learned for row in rows)
    temperatures_M = torch.where(weights_M != 0, temperatures_M, 1.0)
    ids = [token_id for row in rows for token_id in row.token_ids_T[-row.num_learned :]]
    sequences = [b for b, row in enumerate(rows) for _ in range(row.num_learned)]
    return MicroBatch(
        pack=pack,
        targets=Targets(
            torch.tensor(ids, device=device),
            temperatures_M
            if (temperatures_M != 1).any()
            else None,  # each is a pass over the logits
        ),
        sequences_M=torch.tensor(sequences, device=device),
        weights_M=weights_M,
        advantages_M=flat(row.advantages for row in rows),
        behaviour_logprobs_M=flat(row.behaviour_logprobs for row in rows),
        nll_weights_M=flat(row.nll_weights for row in rows),
        num_row_tokens=sum(len(row.token_ids_T) - 1 for row in rows),
    )
