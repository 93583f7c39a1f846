"""The hidden states of packed trees from passes with a cache, for models that cannot attend to trees.

    trunk[:i]  ->  cache, copied for all branches at i  ->  their tokens, padded on the right
    trunk[i:j] ->  the same cache                        ->  …

Design: a recurrent layer has its state where attention has keys, so a prefix can be shared wherever its
cache can be copied. Branches at one index are computed side by side; positions of a document, which leave
its trunk one after the other, continue the trunk's cache. The result is in the order of the packed row, so
that nothing after it knows the difference. Without gradient, because caches are changed in place. The price
is a copy of the cache per position and smaller passes than a packed row's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from forethought.compute.rows import accepts
from forethought.compute.trees.layout import BranchGroup, TreeLayout, Trunk


@dataclass(frozen=True, slots=True)
class _Part:
    """Some tokens of the packed row: their places, their hidden states [n, D], and the body's output."""

    places: torch.Tensor
    hidden: torch.Tensor
    output: Any

    def last(self, num: int) -> _Part:
        """The last of its tokens."""
        return _Part(self.places[-num:], self.hidden[-num:], self.output)


@torch.no_grad()
def cached_output(body: Any, config: Any, layout: TreeLayout) -> Any:
    """The body's output for the packed row, last hidden states [1, S, D]."""
    parts = [part for trunk in layout.trunks for part in _of_tree(body, config, layout, trunk)]
    order = torch.cat([part.places for part in parts]).argsort()
    output = parts[-1].output
    output.last_hidden_state = torch.cat([part.hidden for part in parts])[order][None]
    return output


def _of_tree(body: Any, config: Any, layout: TreeLayout, trunk: Trunk) -> Iterator[_Part]:
    cache: Any = DynamicCache(config=config)
    done = 0
    groups = [(group.index, group) for group in layout.groups if group.trunk == trunk]
    for index, group in [*groups, (trunk.length, None)]:
        if index == done + 1:  # a single token after others is computed otherwise by some layers
            cache = DynamicCache(config=config)
            yield _trunk_part(body, layout, trunk.start, 0, index, cache).last(1)
        elif index > done:
            yield _trunk_part(body, layout, trunk.start, done, index, cache)
        done = index
        if group is not None:
            yield _branches(body, layout, group, cache)


def _trunk_part(
    body: Any, layout: TreeLayout, start: int, first: int, last: int, cache: Any
) -> _Part:
    places = torch.arange(start + first, start + last, device=layout.input_ids.device)
    output = _pass(body, layout.input_ids[:, places], layout.position_ids[:, places], cache)
    return _Part(places, output.last_hidden_state[0], output)


def _branches(body: Any, layout: TreeLayout, group: BranchGroup, trunk_cache: Any) -> _Part:
    firsts_R = layout.padded_RT[:, 0]
    rows = (group.start <= firsts_R) & (firsts_R < group.end)
    num = int(layout.is_token_RT[rows].sum(1).max())
    is_token_RT = _widened(layout.is_token_RT[rows, :num])
    places_RT = layout.branch_Q[_widened(layout.padded_RT[rows, :num])]
    cache = copy.deepcopy(trunk_cache)
    cache.reorder_cache(torch.zeros(len(places_RT), dtype=torch.long, device=places_RT.device))
    positions = group.index + torch.arange(places_RT.shape[1], device=places_RT.device).expand(
        len(places_RT), -1
    )
    output = _pass(body, layout.input_ids[0, places_RT], positions, cache)
    return _Part(places_RT[is_token_RT], output.last_hidden_state[is_token_RT], output)


def _widened(values_RT: torch.Tensor) -> torch.Tensor:
    """At least two tokens per branch, because some layers compute a single one otherwise."""
    return torch.nn.functional.pad(values_RT, (0, max(0, 2 - values_RT.shape[1])))


def _pass(body: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, cache: Any) -> Any:
    kind = body.__class__
    # Renamed in transformers 5; older releases and custom code use the long name.
    options: dict[str, Any] = {"cache" if accepts(kind, "cache") else "past_key_values": cache}
    if accepts(kind, "position_ids"):
        options["position_ids"] = position_ids
    return body(input_ids=input_ids, use_cache=True, **options)
