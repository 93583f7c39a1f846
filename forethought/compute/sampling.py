"""Sample thoughts with a transformers model: prefill a document once, then decode all thoughts in it.

Design: a custom decode loop instead of ``generate``, which repeats every context G times before the
prefill and has no seed per sequence. How the next logits are computed is what a model allows
(:mod:`forethought.compute.decoding`); how a token is chosen is the same for all. Every sample has its own
generator and samples by inverse CDF, so its tokens do not depend on the rest of the batch (up to rounding).
The price is that the random numbers are drawn on the host, one per token. A short text after a sample is
scored while its keys and values are still at hand, a token a step; the price is that its row stays longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import torch

from forethought.compute.decoding import decoded_together, decoding
from forethought.compute.decoding.decoder import Group
from forethought.compute.forms import DecodingForm, forms_of
from forethought.stops import Stops

_PART_LOGITS = {True: 1 << 16, False: 1 << 25}  # on a CPU what its caches hold, on a GPU 256 MiB


@dataclass(frozen=True, slots=True)
class TargetText:
    """Text to be scored after a sample: what precedes it there, and its tokens.

    Example:
        ``TargetText(after_stop_ids=(), after_budget_ids=(40,), target_ids_H=(17,))``
    """

    after_stop_ids: tuple[int, ...]
    after_budget_ids: tuple[int, ...]
    target_ids_H: tuple[int, ...]

    @property
    def max_tokens(self) -> int:
        """The most tokens that follow a sample."""
        before = max(len(self.after_stop_ids), len(self.after_budget_ids))
        return before + len(self.target_ids_H)

    def appended(self, stopped: bool) -> tuple[int, ...]:
        """The tokens after a sample, the target's last."""
        before = self.after_stop_ids if stopped else self.after_budget_ids
        return before + self.target_ids_H


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """``len(seeds_G)`` samples after one prefix, each until a stop (token or sequence) or ``max_tokens``.

    The first ``min_tokens`` are sampled as if stop tokens had no probability; sequences still end a sample.
    After a stop, up to ``prediction_tokens`` more are sampled, until one of ``prediction_stop_ids``.
    With a ``target``, its log-probs after every sample are computed; not together with predictions.

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
    target: TargetText | None = None
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Both would follow the sample."""
        assert not (self.target and self.prediction_tokens)

    @property
    def max_length(self) -> int:
        """The maximum number of tokens that a sample adds to its prefix, with what is scored after it."""
        after = self.target.max_tokens if self.target else self.prediction_tokens
        return self.max_tokens + after

    @property
    def stops(self) -> Stops:
        """What ends a sample."""
        return Stops(self.stop_ids, self.stop_sequences)

    @property
    def group(self) -> Group:
        """The rows to decode."""
        return Group(self.prefix_ids, len(self.seeds_G), self.max_length)


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled ids with their log-probs at the sampling temperature; ``stopped`` by a stop.

    The last ``num_prediction_tokens`` of the ids follow the stop. ``target_logprobs_H`` are those of
    the requested target after it, at temperature 1.

    Example:
        ``Sample((4, 6, 40), (-0.1, -0.7, -0.01), stopped=True)``
    """

    token_ids_L: tuple[int, ...]
    logprobs_L: tuple[float, ...]
    stopped: bool
    num_prediction_tokens: int = 0
    target_logprobs_H: tuple[float, ...] = ()


def derive_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample(
    model: Any,
    requests: Sequence[SampleRequest],
    is_cancelled: Callable[[], bool] = lambda: False,
    form: DecodingForm | None = None,
) -> list[list[Sample]]:
    """Sample every request; shape [requests][G]. Requests may differ in length, group size and limits.

    ``form`` is the form of decoding, by default the one noted on the model.

    Raises:
        CancelledError: of :mod:`concurrent.futures`; ``is_cancelled`` became true between two tokens.
    """
    form = form or forms_of(model).decoding
    results: list[list[Sample]] = [[] for _ in requests]
    for members in decoded_together([request.prefix_ids for request in requests], form):
        drawn = _sample_together(model, [requests[i] for i in members], is_cancelled, form)
        for index, samples_G in zip(members, drawn, strict=True):
            results[index] = samples_G
    return results


@torch.inference_mode()
def _sample_together(
    model: Any,
    requests: Sequence[SampleRequest],
    is_cancelled: Callable[[], bool],
    form: DecodingForm,
) -> list[list[Sample]]:
    with decoding(model, [request.group for request in requests], form) as decoder:
        choice = _Choice(requests, decoder.owners_R)
        ids_R = choice.advance(decoder.first_logits())
        while choice.kept:
            if is_cancelled():
                raise CancelledError
            if len(choice.kept) < len(ids_R):
                decoder.keep(choice.kept)
                ids_R = ids_R[choice.kept]
                choice.compact()
            ids_R = choice.advance(decoder.next_logits(ids_R))
    return choice.results()


class _Choice:
    """The tokens sampled for each row, and which rows are still alive."""

    def __init__(self, requests: Sequence[SampleRequest], owners_R: Sequence[int]) -> None:
        self._requests, self._owners = requests, list(owners_R)
        self._stops = [request.stops for request in requests]
        self._uniforms = _uniforms(requests, self._owners)  # [R, L]
        self._temperatures = torch.tensor([requests[i].temperature for i in self._owners])[:, None]
        self._alive = list(range(len(self._owners)))
        self.kept: list[int] = []
        self._num_steps = 0
        self._ids: list[list[int]] = [[] for _ in self._owners]
        self._logprobs: list[list[float]] = [[] for _ in self._owners]
        self._stopped = [False] * len(self._owners)
        self._num_predicted = [0] * len(self._owners)
        self._appended: list[list[int]] = [[] for _ in self._owners]  # after a sample, still unread
        self._target_logprobs: list[list[float]] = [[] for _ in self._owners]

    def advance(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of every alive row: sampled, or read where its sample has ended. Shape [R].

        ``kept`` are the places of the rows that go on.
        """
        uniforms_R = self._uniforms[self._alive, self._num_steps].to(logits.device)
        scaled = logits / self._temperatures[self._alive].to(logits)
        logprobs = torch.log_softmax(self._without_early_stops(scaled), dim=-1)
        ids = _inverse_cdf(logprobs, uniforms_R)
        sampled = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        read = {
            place: self._appended[row].pop(0)
            for place, row in enumerate(self._alive)
            if self._appended[row]
        }
        if read:
            ids[list(read)] = torch.tensor(list(read.values()), device=ids.device)
            self._score(logits, read)
        self._num_steps += 1
        going_on = [
            bool(self._appended[row]) if place in read else self._take(row, token_id, logprob)
            for place, (row, token_id, logprob) in enumerate(
                zip(self._alive, ids.tolist(), sampled, strict=True)
            )
        ]
        self.kept = [place for place, goes_on in enumerate(going_on) if goes_on]
        return ids

    def compact(self) -> None:
        """Only rows that go on are alive."""
        self._alive = [self._alive[place] for place in self.kept]

    def _without_early_stops(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits without those of stop tokens where a sample is shorter than its least length."""
        for place, row in enumerate(self._alive):
            request = self._requests[self._owners[row]]
            if self._num_steps < request.min_tokens and request.stop_ids:
                logits[place, list(request.stop_ids)] = float("-inf")
        return logits

    def _score(self, logits: torch.Tensor, read: dict[int, int]) -> None:
        """Keep the log-probs of the read tokens that are a target's, not what precedes it."""
        of_target = {
            place: token_id for place, token_id in read.items() if self._is_in_target(place)
        }
        if not of_target:
            return
        ids = torch.tensor(list(of_target.values()), device=logits.device)
        logprobs = torch.log_softmax(logits[list(of_target)], dim=-1).gather(1, ids[:, None])[:, 0]
        for place, logprob in zip(of_target, logprobs.tolist(), strict=True):
            self._target_logprobs[self._alive[place]].append(logprob)

    def _is_in_target(self, place: int) -> bool:
        row = self._alive[place]
        target = self._requests[self._owners[row]].target
        return target is not None and len(self._appended[row]) < len(target.target_ids_H)

    def _take(self, row: int, token_id: int, logprob: float) -> bool:
        """Record a row's newest sampled token; False if nothing follows it."""
        self._ids[row].append(token_id)
        self._logprobs[row].append(logprob)
        if self._continues(row, token_id):
            return True
        if target := self._requests[self._owners[row]].target:
            self._appended[row] = list(target.appended(self._stopped[row]))
        return bool(target)

    def _continues(self, row: int, token_id: int) -> bool:
        """Whether another token is sampled after this one."""
        request = self._requests[self._owners[row]]
        if self._stopped[row]:
            self._num_predicted[row] += 1
            is_full = self._num_predicted[row] == request.prediction_tokens
            return not is_full and token_id not in request.prediction_stop_ids
        self._stopped[row] = self._stops[self._owners[row]].end_here(self._ids[row])
        if self._stopped[row]:
            return request.prediction_tokens > 0
        return len(self._ids[row]) < request.max_tokens

    def results(self) -> list[list[Sample]]:
        """The samples, grouped by request."""
        grouped: list[list[Sample]] = [[] for _ in self._requests]
        for row, owner in enumerate(self._owners):
            drawn = Sample(
                tuple(self._ids[row]),
                tuple(self._logprobs[row]),
                self._stopped[row],
                self._num_predicted[row],
                tuple(self._target_logprobs[row]),
            )
            grouped[owner].append(drawn)
        return grouped


def _uniforms(requests: Sequence[SampleRequest], owners_R: Sequence[int]) -> torch.Tensor:
    """The random numbers of every row, a request's rows by its seeds in order. Shape [R, L]."""
    longest = max(request.max_length for request in requests)
    seeds = [iter(request.seeds_G) for request in requests]
    generators = [torch.Generator().manual_seed(next(seeds[owner])) for owner in owners_R]
    return torch.stack(
        [torch.rand(longest, generator=one, dtype=torch.float64) for one in generators]
    )


def _inverse_cdf(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """A token for every row. In parts, because double precision takes twice the memory of the logits."""
    most = _PART_LOGITS[logprobs.device.type == "cpu"]
    num_rows = max(1, most // logprobs.shape[1])
    parts = zip(torch.split(logprobs, num_rows), torch.split(uniforms, num_rows), strict=True)
    return torch.cat([_inverse_cdf_of(*part) for part in parts])


def _inverse_cdf_of(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    cumulative = logprobs.double().exp_().cumsum(dim=-1)
    drawn = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, drawn, right=True)[:, 0].clamp_max(logprobs.shape[1] - 1)
