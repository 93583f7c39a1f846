"""Sample thoughts with a transformers model: prefill the context once, then decode G branches.

Design: a custom decode loop instead of ``generate``, which repeats every context G times before the
prefill and has no seed per sequence. Every sample has its own generator and samples by inverse CDF, so
its tokens do not depend on the rest of the batch (up to rounding). The price is that the random numbers
are drawn on the host, one per token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from forethought.compute.rows import PaddedRows, pad_left, tail_logits


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """``len(seeds_G)`` samples after one prefix, each until a stop token or ``max_tokens``.

    After a stop token, up to ``prediction_tokens`` more are sampled, until one of ``prediction_stop_ids``.

    Example:
        ``SampleRequest((1, 5, 39), (11, 12), max_tokens=9, temperature=1.0, stop_ids=(40,))``
    """

    prefix_ids: tuple[int, ...]
    seeds_G: tuple[int, ...]
    max_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    prediction_tokens: int = 0
    prediction_stop_ids: tuple[int, ...] = ()

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of a sample."""
        return self.max_tokens + self.prediction_tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled ids with their log-probs at the sampling temperature; ``stopped`` by a stop token.

    The last ``num_prediction_tokens`` of the ids follow the stop token.

    Example:
        ``Sample((4, 6, 40), (-0.1, -0.7, -0.01), stopped=True)``
    """

    token_ids_L: tuple[int, ...]
    logprobs_L: tuple[float, ...]
    stopped: bool
    num_prediction_tokens: int = 0


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.inference_mode()
def sample(
    model: Any,
    requests: Sequence[SampleRequest],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[list[Sample]]:
    """Sample every request; shape [requests][G]. Requests may differ in length, group size and limits.

    Raises:
        CancelledError: of :mod:`concurrent.futures`; ``is_cancelled`` became true between two tokens.
    """
    device = next(iter(model.parameters())).device
    prefixes = pad_left([request.prefix_ids for request in requests], device)
    cache: Any = DynamicCache(config=model.config)
    logits = tail_logits(model, prefixes, 1, cache)
    owners = [i for i, request in enumerate(requests) for _ in request.seeds_G]
    # Unlike batch_select_indices, every kind of cache layer has it, recurrent ones included.
    cache.reorder_cache(torch.tensor(owners, device=device))
    decode = _Decode(requests, owners, prefixes, device)
    logits = logits[owners, -1]
    while decode.advance(logits):
        if is_cancelled():
            raise CancelledError
        decode.compact(cache)
        logits = tail_logits(model, decode.next_rows(), 1, cache)[:, -1]
    return decode.results()


class _Decode:
    """The decode state: the tokens sampled for each row, and the rows still alive."""

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        owners: list[int],
        prefixes: PaddedRows,
        device: torch.device,
    ) -> None:
        self._requests, self._owners, self._device = requests, owners, device
        self._mask = prefixes.attention_mask[owners]
        self._positions = prefixes.position_ids[owners, -1:]
        self._uniforms = _uniforms(requests).to(device)  # [R, L]
        temperatures = [requests[owner].temperature for owner in owners]
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]
        self._alive = list(range(len(owners)))
        self._kept: list[int] = []
        self._last_ids = torch.empty(0, dtype=torch.long, device=device)
        self._ids: list[list[int]] = [[] for _ in owners]
        self._logprobs: list[list[float]] = [[] for _ in owners]
        self._stopped = [False] * len(owners)
        self._num_predicted = [0] * len(owners)

    def advance(self, logits: torch.Tensor) -> bool:
        """Sample one token for every alive row; False once no row is left."""
        step = len(self._ids[self._alive[0]])
        logprobs = torch.log_softmax(logits / self._temperatures[self._alive], dim=-1)
        ids = _inverse_cdf(logprobs, self._uniforms[self._alive, step])
        chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        self._kept = []
        for slot, (row, token_id) in enumerate(zip(self._alive, ids.tolist(), strict=True)):
            self._ids[row].append(token_id)
            self._logprobs[row].append(chosen[slot])
            if self._continues(row, token_id):
                self._kept.append(slot)
        self._last_ids = ids
        return bool(self._kept)

    def _continues(self, row: int, token_id: int) -> bool:
        """Record a row's newest token; False if it was the last."""
        request = self._requests[self._owners[row]]
        if self._stopped[row]:
            self._num_predicted[row] += 1
            is_full = self._num_predicted[row] == request.prediction_tokens
            return not is_full and token_id not in request.prediction_stop_ids
        self._stopped[row] = token_id in request.stop_ids
        if self._stopped[row]:
            return request.prediction_tokens > 0
        return len(self._ids[row]) < request.max_tokens

    def compact(self, cache: Any) -> None:
        """Drop finished rows from the cache and from the alive set."""
        if len(self._kept) == len(self._alive):
            return
        kept = torch.tensor(self._kept, device=self._device)
        cache.reorder_cache(kept)
        self._alive = [self._alive[slot] for slot in self._kept]
        self._last_ids, self._mask = self._last_ids[kept], self._mask[kept]
        self._positions = self._positions[kept]

    def next_rows(self) -> PaddedRows:
        """The last sampled token of every alive row, as input of the next forward pass."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._alive), 1)], dim=1)
        self._positions = self._positions + 1
        return PaddedRows(self._last_ids[:, None], self._mask, self._positions)

    def results(self) -> list[list[Sample]]:
        """The samples, grouped by request."""
        grouped: list[list[Sample]] = [[] for _ in self._requests]
        for row, owner in enumerate(self._owners):
            ids, logprobs = tuple(self._ids[row]), tuple(self._logprobs[row])
            drawn = Sample(ids, logprobs, self._stopped[row], self._num_predicted[row])
            grouped[owner].append(drawn)
        return grouped


def _uniforms(requests: Sequence[SampleRequest]) -> torch.Tensor:
    longest = max(request.max_length for request in requests)
    return torch.stack(
        [
            torch.rand(longest, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for request in requests
            for seed in request.seeds_G
        ]
    )


def _inverse_cdf(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    drawn = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True)[:, 0].clamp_max(logprobs.shape[1] - 1)
