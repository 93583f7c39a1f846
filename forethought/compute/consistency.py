"""Check in which forms a model is one function: packed, padded and cached rows against rows alone.

Sampler, scorer and learner compute in different forms, and every importance ratio and reward relies on
their agreement. Recurrent layers read across packed rows, attention may have biases of its own, a cache may
be ignored or lack an operation, and rotary frequencies may depend on the longest row of a batch.

Design: measured at load with a few short rows instead of looked up by architecture, because a class differs
between releases of transformers; the fastest form that agrees is used. A difference is relative to the
spread of the logits and the median over tokens, so that one expert chosen otherwise (rounding) does not
count and a fault of every token does. The tolerance follows the model's own rounding, seen where a row is
computed as the beginning of a longer one, and with torch's plainest attention kernel: thirty layers of
bfloat16 differ by 3 % between kernels. The price is about a dozen short forward passes per load. Rotary
frequencies that change beyond thousands of tokens are not measured but taken from the configuration.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from forethought.compute.finite import not_finite
from forethought.compute.forms import NO_LIMIT, DecodingForm, Forms, RowForm
from forethought.compute.packing import Row, packs_of
from forethought.compute.rows import pad_left, tail_logits
from forethought.compute.sampling import Sample, SampleRequest, sample
from forethought.compute.token_logprobs import Predictions
from forethought.errors import InvalidInput, one_line

_PREFIXES = (2, 4, 7)  # short, because padding changes the first tokens most
_NUM_TOKENS = 12
_NUM_OWN = 3  # tokens by which a row differs from all others
_NUM_SAMPLED = 5
_LONGEST_WINDOW = 48  # longer sliding windows are not filled
_TOLERANCES = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (0.03, 0.15)}  # least and most
_STRICTNESS = 3  # a state that a layer forgets changes the few tokens of the check little
_CACHE_STRICTNESS = 2  # likewise, but rounding adds up over the steps of decoding
_ROUNDINGS = 4  # tolerated: this many times the rounding seen
_MAX_CHARACTERS = 160  # of an error of the model's code
_DECODED: dict[DecodingForm | None, str] = {
    "cache": "thoughts are sampled with a cache for each, decoding with trees differs",
    "unpadded": "thoughts are sampled beside those of equally long contexts, decoding with padding differs",
    "recompute": "thoughts are sampled slowly, by a pass over the whole row for every token; with a cache",
    None: "the torch engine cannot sample, no form of decoding agrees with a pass over the whole row",
}


@dataclass(frozen=True, slots=True)
class Consistency:
    """Where a model's other forms differ from a row alone; empty texts where they agree.

    ``decoding`` is the fastest exact form of decoding, None if there is none, and ``decoding_fault`` why it
    is not a faster one. ``weights_fault`` says what is not finite, so that nothing could be compared;
    ``boundary_tokens`` is the row length beyond which rotary frequencies change, if they do.

    Example:
        ``Consistency(padding_fault="by 93 % of the logits' spread, of which 0.01 % is tolerated")``
    """

    padding_fault: str = ""
    sharing_fault: str = ""
    prefix_fault: str = ""
    decoding: DecodingForm | None = "trees"
    decoding_fault: str = ""
    boundary_tokens: int = NO_LIMIT
    weights_fault: str = ""

    @property
    def is_harmful(self) -> bool:
        """Whether a run would be slow or in vain, not only restricted."""
        is_slow = (self.padding_fault and self.sharing_fault) or self.decoding == "recompute"
        return bool(self.weights_fault or is_slow)

    @property
    def forms(self) -> Forms:
        """The fastest exact forms."""
        decoding = self.decoding or "recompute"
        if not self.sharing_fault:
            return Forms("trees", decoding, self.boundary_tokens)
        whole: RowForm = "alone" if self.padding_fault else "padded"
        rows = whole if self.prefix_fault else "cached"
        return Forms(rows, decoding, self.boundary_tokens, gradients=whole)

    @property
    def _instead(self) -> str:
        if self.prefix_fault:
            return f"contexts are computed again for every thought, as with a cache ({self.prefix_fault})"
        return "contexts are shared through a cache, and computed for every thought by the learner"

    def notes(self) -> Iterator[str]:
        """What differs, and what is done about it, a line each."""
        if self.weights_fault:
            yield self.weights_fault
        if self.sharing_fault:
            yield f"packing rows as trees changes log-probs ({self.sharing_fault}): {self._instead}"
        if self.padding_fault and self.sharing_fault:
            yield f"padding changes log-probs ({self.padding_fault}): rows are computed one at a time"
        if self.decoding_fault and self.decoding_fault != self.sharing_fault:
            yield f"{_DECODED[self.decoding]}: {self.decoding_fault}"
        if self.boundary_tokens != NO_LIMIT:
            yield (
                f"rotary frequencies change beyond {self.boundary_tokens} tokens: longer rows are "
                "computed one at a time, and are not sampled"
            )

    def sampling_fault(self, num_tokens: int = 1) -> str | None:
        """Why the torch engine cannot sample rows of this length, prefix included, or None."""
        if self.decoding is None:
            return (
                "the torch engine cannot sample from this model, because no form of decoding agrees with a "
                f"pass over the whole row ({self.decoding_fault}); choose another model, "
                "rollout.engine=vllm if vLLM knows it, or an objective without thoughts"
            )
        return self.boundary_fault(num_tokens)

    def boundary_fault(self, num_tokens: int) -> str | None:
        """Why no engine samples rows of this length as they are scored, or None."""
        if num_tokens > self.boundary_tokens:
            return (
                f"rows of up to {num_tokens} tokens would be sampled, and the model's rotary frequencies "
                f"change beyond {self.boundary_tokens}: a thought across that length is scored with others "
                f"than it was sampled with; expected at most {self.boundary_tokens}: lower "
                "corpus.window_tokens or sampling.max_thought_tokens"
            )
        return None


@torch.no_grad()
def measure_consistency(
    model: Any, config: Any, token_ids: Sequence[int], max_length_tokens: int
) -> Consistency:
    """Compare a loaded model's packed, padded and decoding passes with rows alone.

    Args:
        model: in evaluation mode, on its device.
        config: its text configuration.
        token_ids: ordinary tokens of its vocabulary, from which the rows are drawn.
        max_length_tokens: no longer row is ever computed.

    Raises:
        InvalidInput: a forward pass fails on a single row.
    """
    boundary = rotary_boundary(config)
    longest = min(max_length_tokens, boundary)
    num_tokens = max(4, min(longest, _num_tokens(config)))
    row, *others = (tuple(random.Random(i).choices(token_ids, k=num_tokens)) for i in range(3))
    lengths = sorted({*_PREFIXES, num_tokens - _NUM_OWN})
    prefixes = [row[:n] for n in lengths if n + _NUM_OWN <= num_tokens]
    rows = [*(prefix + other[:_NUM_OWN] for prefix in prefixes for other in others), row]
    alone = _alone(model, rows)
    name = not_finite(model)
    if name or alone[-1].isnan().any():  # equal to nothing; sampling and scoring refuse it
        return Consistency(weights_fault=_weights_fault(model, name))
    tolerance = _tolerance(model, row, alone)
    sharing_fault = _fault(lambda: _together(model, rows, alone, "trees"), tolerance)
    decoding, decoding_fault = _decoding(model, row, tolerance, sharing_fault)
    return Consistency(
        padding_fault=_fault(lambda: _together(model, rows, alone, "padded"), tolerance),
        sharing_fault=sharing_fault,
        prefix_fault=_fault(
            lambda: _together(model, rows, alone, "cached"), tolerance / _STRICTNESS
        ),
        decoding=decoding,
        decoding_fault=decoding_fault,
        boundary_tokens=boundary if boundary < max_length_tokens else NO_LIMIT,
    )


def rotary_boundary(config: Any) -> int:
    """The row length beyond which a text configuration's rotary frequencies depend on the longest row.

    Thousands of tokens for a real model, so it is not measured.
    """
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *given.values()]  # one for all layers, or by type of layer
    return min(_boundary(config, kind) for kind in kinds if isinstance(kind, dict))


def _boundary(config: Any, rope: dict[Any, Any]) -> int:
    kind = str(rope.get("rope_type", ""))
    if kind == "longrope" and rope.get("short_factor") != rope.get("long_factor"):
        boundary = rope.get("original_max_position_embeddings")
    elif "dynamic" in kind:
        boundary = getattr(config, "max_position_embeddings", None)
    else:
        return NO_LIMIT
    return boundary if isinstance(boundary, int) and boundary > 0 else NO_LIMIT


def _num_tokens(config: Any) -> int:
    """The longest row's length: past the sliding window if that is short."""
    window = getattr(config, "sliding_window", None) or 0
    return window + _NUM_TOKENS if window <= _LONGEST_WINDOW else _NUM_TOKENS


def _weights_fault(model: Any, name: str) -> str:
    what = f"{name} holds NaN or an infinity" if name else f"log-probs are NaN in {model.dtype}"
    return (
        f"the weights are corrupt or overflow: {what}; expected finite numbers, or tasks fail: restore "
        "the file, or choose a wider model.dtype"
    )


def _alone(model: Any, rows: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The log-probs of every row, computed alone. Shape [T, V] each."""
    try:
        return [_logprobs(model, row) for row in rows]
    except Exception as error:
        raise InvalidInput(
            f"{type(model).__name__} does not compute a row of tokens here ({_described(error)}); expected "
            "a causal language model that runs on this device in this dtype"
        ) from error


def _together(
    model: Any, rows: Sequence[tuple[int, ...]], alone: Sequence[torch.Tensor], form: RowForm
) -> list[torch.Tensor]:
    """The differences of the last tokens of all rows, in one pass of the given form. Shape [tokens] each.

    Those of rows of the greatest length are apart: only they may fill a sliding window.
    """
    asked = [Row((*row, 0), min(_NUM_OWN, len(row))) for row in rows]
    (pack,) = packs_of(asked, Forms(form), sum(map(len, rows)) * len(rows), _device(model))
    predictions = Predictions(model, pack)
    logprobs = torch.log_softmax(predictions.logits(predictions.hidden_MD), dim=-1)
    reference = torch.cat([alone[i][-asked[i].num_tail :] for i in pack.rows])
    differences = _differences(reference, logprobs)
    is_long = [len(rows[i]) == len(rows[-1]) for i in pack.rows for _ in range(asked[i].num_tail)]
    long = torch.tensor(is_long, device=differences.device)
    return [part for part in (differences[~long], differences[long]) if len(part)]


def _decoding(
    model: Any, row: tuple[int, ...], tolerance: float, sharing_fault: str
) -> tuple[DecodingForm | None, str]:
    """The fastest exact form of decoding, and why no faster one is exact."""
    fault, forms = sharing_fault, list(get_args(DecodingForm))
    for form in forms[1:] if sharing_fault else forms:
        allowed = tolerance / _CACHE_STRICTNESS if form in ("cache", "unpadded") else tolerance
        found = _fault(lambda form=form: _decoded(model, row, form), allowed)  # type: ignore[misc]
        if not found:
            return form, fault
        fault = found
    return None, fault


def _decoded(model: Any, row: tuple[int, ...], form: DecodingForm) -> list[torch.Tensor]:
    """The sampler's log-probs of its own samples against passes over whole rows. Shape [tokens]."""
    num_new = max(3, min(_NUM_SAMPLED, len(row) // 2))
    whole, short = row[:-num_new], row[: max(1, len(row) // 4)]
    requests = [
        SampleRequest(whole, (0, 1), num_new, temperature=1.0, stop_ids=()),
        SampleRequest(short, (2,), num_new - 1, temperature=1.0, stop_ids=()),
        SampleRequest((*whole[:-1], row[0]), (3, 4), num_new, temperature=1.0, stop_ids=()),
    ]
    drawn = sample(model, requests, form=form)
    differences = [
        _decoded_differences(model, request.prefix_ids, one)
        for request, samples_G in zip(requests, drawn, strict=True)
        for one in samples_G
    ]
    return [torch.cat(differences)]


def _decoded_differences(model: Any, prefix_ids: tuple[int, ...], drawn: Sample) -> torch.Tensor:
    """Of all tokens but the first, which follows from the prefix without the cache. Shape [L - 1]."""
    ids, num = drawn.token_ids_L, len(drawn.token_ids_L) - 1
    logprobs = _logprobs(model, (prefix_ids + ids)[:-1])[-num:].cpu()
    whole = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return (whole - torch.tensor(drawn.logprobs_L[1:])).abs() / logprobs.std(dim=-1)


def _differences(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The RMS difference of every token's log-probs, in units of their spread. Shape [T]."""
    return (reference - other).pow(2).mean(dim=-1).sqrt() / reference.std(dim=-1)


def _tolerance(model: Any, row: tuple[int, ...], alone: Sequence[torch.Tensor]) -> float:
    """By the model's rounding: how a row changes as the beginning of a longer one, or in another kernel.

    ``row`` is the last of those that were computed alone.
    """
    beginnings = [
        _differences(row[:-_NUM_OWN], alone[-1][: len(row) - _NUM_OWN]).median()
        for row in alone[:-1]
    ]
    with sdpa_kernel(SDPBackend.MATH):
        plain = _logprobs(model, row)
    in_another_kernel = _differences(plain, alone[-1]).median()
    rounding = max(float(one) for one in (*beginnings, in_another_kernel))
    least, most = _TOLERANCES[model.dtype]
    return min(max(least, _ROUNDINGS * rounding), most)


def _fault(measure: Callable[[], Sequence[torch.Tensor]], tolerance: float) -> str:
    """In words, why passes disagree in one of the parts measured; empty if they agree."""
    try:
        difference = max(float(part.median()) for part in measure())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"it fails with {_described(error)}"
    if difference > tolerance:
        return (
            f"by {difference:.2%} of the logits' spread, of which {tolerance:.2%} may be rounding"
        )
    return ""


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, _MAX_CHARACTERS)}"


def _logprobs(model: Any, row: tuple[int, ...]) -> torch.Tensor:
    """After every token of a row alone. Shape [T, V]."""
    logits = tail_logits(model, pad_left([row], _device(model)), len(row))
    return torch.log_softmax(logits[0], dim=-1)


def _device(model: Any) -> torch.device:
    device: torch.device = next(iter(model.parameters())).device
    return device
