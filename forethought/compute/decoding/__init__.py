"""Decoding: the next token's logits for all rows of a batch, in the form that a model allows.

    trees            one trunk for all rows of all positions of a document
    cache, unpadded  a prefix is prefilled once and copied for its rows
    recompute        the whole row for every token

Design: a decoder knows prefixes and rows, not how tokens are chosen (:mod:`forethought.compute.sampling`),
so that every form gives the same samples for the same seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from forethought.compute.decoding.attention import decoding_attention
from forethought.compute.decoding.cached import CachedDecoder
from forethought.compute.decoding.decoder import Decoder, Group, TokenIds
from forethought.compute.decoding.recomputed import RecomputedDecoder
from forethought.compute.decoding.tree_decoder import TreeDecoder
from forethought.compute.forms import DecodingForm


@contextmanager
def decoding(model: Any, groups: Sequence[Group], form: DecodingForm) -> Iterator[Decoder]:
    """A decoder of groups that may be :func:`decoded_together`."""
    device = next(iter(model.parameters())).device
    if form == "trees":
        with decoding_attention(model):
            yield TreeDecoder(model, groups, device)
    elif form == "recompute":
        yield RecomputedDecoder(model, groups, device)
    else:
        yield CachedDecoder(model, groups, device)


def decoded_together(prefixes: Sequence[TokenIds], form: DecodingForm) -> list[list[int]]:
    """The indices of prefixes that may share a decoder: of one length where none may be padded."""
    if form in ("trees", "cache"):
        return [list(range(len(prefixes)))]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prefix in enumerate(prefixes):
        by_length[len(prefix)].append(index)
    return list(by_length.values())
