"""The rows of a decode step in blocks, each of which attends to its trunks in one product.

    trunk batch   trunks of similar length, whose keys and values are kept as one tensor [B, heads, P, D]
    block         rows that attend to the first P keys of a batch: B trunks with G slots of one row each

Design: many small trunks become one block, because a product for each would cost more to start than to
compute; the rows of a large trunk become several by where they leave it, so that the keys beyond are not
computed in vain. Rows lie in the order of batches, trees and indices, so a block's rows are a slice. The
price is padding, which the limits below bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

_SMALL = 2048
"""Rows times keys that take about as long to compute as a block takes to start."""


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row leaves its trunk, the ``trunk``-th of batch ``batch``.

    Example:
        ``RowPlace(batch=0, trunk=2, index=300)``
    """

    batch: int
    trunk: int
    index: int


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``start`` to ``end - 1`` and the first ``num_keys`` keys of some trunks of a batch.

    Row ``r`` is in slot ``slot_of_row[r - start]`` of trunks x slots; ``row_of_slot`` is the inverse, with
    any row in an empty slot. Both are None where they are the identity.

    Example:
        ``Block(batch=0, num_trunks=1, num_keys=300, start=0, end=8, row_of_slot=None, slot_of_row=None)``
    """

    batch: int
    num_trunks: int
    num_keys: int
    start: int
    end: int
    row_of_slot: torch.Tensor | None
    slot_of_row: torch.Tensor | None


def blocks_of(
    rows: Sequence[RowPlace], sizes: Sequence[int], device: torch.device
) -> Iterator[Block]:
    """The blocks of rows in order; ``sizes`` are the numbers of trunks that each batch still keeps."""
    start = 0
    for batch, members in groupby(rows, key=lambda row: row.batch):
        of_batch = list(members)
        if sizes[batch] == 1:
            for part in _parts(of_batch):
                yield Block(batch, 1, part[-1].index, start, start + len(part), None, None)
                start += len(part)
        else:
            yield _slotted(batch, of_batch, sizes[batch], start, device)
            start += len(of_batch)


def _parts(rows: Sequence[RowPlace]) -> Iterator[list[RowPlace]]:
    """Rows of one trunk by rising index, cut where the keys saved outweigh a block."""
    part: list[RowPlace] = []
    num_seen = 0
    for row in rows:
        if part and len(part) * row.index - num_seen > _SMALL:
            yield part
            part, num_seen = [], 0
        part.append(row)
        num_seen += row.index
    yield part


def _slotted(
    batch: int, rows: Sequence[RowPlace], num_trunks: int, start: int, device: torch.device
) -> Block:
    """All rows of several trunks: as many slots for each as the largest needs."""
    counts = [0] * num_trunks
    slots = []
    for row in rows:
        slots.append((row.trunk, counts[row.trunk]))
        counts[row.trunk] += 1
    num_slots = max(counts)
    num_keys = max(row.index for row in rows)
    end = start + len(rows)
    if min(counts) == num_slots:
        return Block(batch, num_trunks, num_keys, start, end, None, None)
    slot_of_row = torch.tensor([trunk * num_slots + slot for trunk, slot in slots])
    row_of_slot = torch.zeros(num_trunks * num_slots, dtype=torch.long)
    row_of_slot[slot_of_row] = torch.arange(len(rows))
    return Block(
        batch, num_trunks, num_keys, start, end, row_of_slot.to(device), slot_of_row.to(device)
    )
