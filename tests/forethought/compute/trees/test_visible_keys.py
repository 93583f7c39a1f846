"""The spans of visible keys against the rows themselves, and the block masks made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from forethought.compute.trees.block_mask import block_mask_of
from forethought.compute.trees.layout import TreeLayout, layout_of
from forethought.compute.trees.tree import trees_of
from forethought.compute.trees.visible_keys import MaskFunction

CPU = torch.device("cpu")
MASKS: dict[str, MaskFunction] = {
    "causal": causal_mask_function,
    "causal by another name": and_masks(causal_mask_function),
    "window": sliding_window_causal_mask_function(5),
    "window of one": sliding_window_causal_mask_function(1),
    "chunks": chunked_causal_mask_function(6, torch.zeros(1, dtype=torch.long)),
}


def ids(start: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(range(start, start + num_tokens))


def rows(scale: int) -> list[tuple[int, ...]]:
    """Two documents with branches at several indices, one of them the whole trunk; and a row alone."""
    first, second = ids(1000, 13 * scale), ids(3000, 8 * scale)
    return [
        first + ids(10, 3 * scale),
        first + ids(200, scale),
        first[: 6 * scale] + ids(400, 2 * scale),
        first[: 6 * scale] + ids(600, 5 * scale),
        first,
        second + ids(10, scale),
        second[: 5 * scale] + ids(20, 2 * scale),
        ids(800, 4 * scale),
    ]


def seen_by_rows(layout: TreeLayout, scale: int, allows: MaskFunction) -> torch.Tensor:
    """Which packed token sees which, from the definition: each row by itself. Shape [S, S]."""
    num = layout.input_ids.shape[1]
    seen = torch.zeros(num, num, dtype=torch.bool)
    zero = torch.zeros((), dtype=torch.long)
    for row, token_ids in enumerate(rows(scale)):
        positions = torch.arange(len(token_ids))
        places = torch.tensor(layout.places(row, len(token_ids), len(token_ids)))
        allowed = allows(zero, zero, positions[:, None], positions) & (
            positions[:, None] >= positions
        )
        seen[places[:, None], places] |= allowed
    return seen


@pytest.mark.parametrize("name", MASKS)
def test_every_token_sees_what_its_row_sees(name: str) -> None:
    layout = layout_of(trees_of(rows(1)), CPU)
    visible = layout.visible_keys.within(layout.position_ids[0], MASKS[name])
    places = torch.arange(layout.input_ids.shape[1])
    found = visible.sees(places[:, None], places)
    assert torch.equal(found, seen_by_rows(layout, 1, MASKS[name]))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [1, 17, 40])  # less than two blocks of 128; several; many
def test_blocks_hold_what_tokens_see(name: str, scale: int) -> None:
    """Against PyTorch's own construction, from a mask of every pair."""
    layout = layout_of(trees_of(rows(scale)), CPU)
    num = layout.input_ids.shape[1]
    visible = layout.visible_keys.within(layout.position_ids[0], MASKS[name])
    blocks = block_mask_of(visible)
    length = blocks.seq_lengths[0]
    assert length == max(256, num)
    seen = create_mask(blocks.mask_mod, 1, 1, length, length, CPU)[0, 0]
    expected = torch.eye(length, dtype=torch.bool)  # padding sees itself
    expected[:num, :num] = seen_by_rows(layout, scale, MASKS[name])
    assert torch.equal(seen, expected)
    theirs = create_block_mask(blocks.mask_mod, 1, 1, length, length, CPU)
    assert torch.equal(
        _dense(blocks.kv_num_blocks, blocks.kv_indices),
        _dense(theirs.kv_num_blocks, theirs.kv_indices),
    )
    assert torch.equal(blocks.to_dense(), theirs.to_dense())


def _dense(num_N: torch.Tensor, indices_NN: torch.Tensor) -> torch.Tensor:
    """Which key blocks a list names, for each query block."""
    num, indices = num_N[0, 0], indices_NN[0, 0].long()
    named = torch.arange(indices.shape[1]) < num[:, None]
    return torch.zeros_like(indices, dtype=torch.bool).scatter(1, indices, named)


def _bidirectional(_b: Any, _h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q - k).abs() < 4


def _dilated(_b: Any, _h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q >= k) & ((q - k) % 2 == 0)


@pytest.mark.parametrize("allows", [_bidirectional, _dilated])
def test_masks_that_are_no_spans_are_refused(allows: Callable[..., torch.Tensor]) -> None:
    layout = layout_of(trees_of(rows(1)), CPU)
    with pytest.raises(TypeError, match="span of the latest tokens"):
        layout.visible_keys.within(layout.position_ids[0], allows)
