"""Log-probs of tokens by a model: the one place where hidden states meet a vocabulary.

Design: the model's body is run without its head, and the head where a prediction is wanted, in chunks, so
that logits of all tokens never exist at once. What a model does to its logits (scales, soft caps, a float32
head) is its own code: its forward pass is called with the hidden states in place of the body's output. With
gradient, several chunks are recomputed in the backward pass. PyTorch's ``linear_cross_entropy`` would do
that for a plain head, but on a CPU it was 7 to 15 times slower than this, and in bfloat16 0.04 nats off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from forethought.compute.packing import Pack
from forethought.compute.rows import accepts
from forethought.compute.trees.attention import attending_trees
from forethought.compute.trees.cached import cached_output

KEPT_LOGITS = 1 << 26
"""With gradient, at most as many are kept for the backward pass."""

_CHUNK_LOGITS = 1 << 24  # 64 MiB in float32


@dataclass(frozen=True, slots=True)
class Targets:
    """What to predict at each of a pack's M places.

    ``temperatures_M`` divide the logits (None: 1). ``removed_M`` are tokens whose mass is removed before
    normalising, -1 for none (None: nowhere).

    Example:
        ``Targets(torch.tensor([42, 7]))``
    """

    ids_M: torch.Tensor
    temperatures_M: torch.Tensor | None = None
    removed_M: torch.Tensor | None = None

    def part(self, start: int, end: int) -> Targets:
        """Those of some places."""
        temperatures, removed = self.temperatures_M, self.removed_M
        return Targets(
            self.ids_M[start:end],
            None if temperatures is None else temperatures[start:end],
            None if removed is None else removed[start:end],
        )


class Predictions:
    """A pack's hidden states where something is predicted, and the head to apply to them."""

    def __init__(self, model: Any, pack: Pack) -> None:
        self._model, self._body = model, _body(model)
        computed = self._body or model
        options: dict[str, Any] = {"use_cache": False}
        if accepts(computed.__class__, "position_ids"):
            options["position_ids"] = pack.position_ids
        if pack.layout is None:
            output = computed(input_ids=pack.input_ids, **options)
        elif pack.is_cached:
            output = cached_output(computed, model.config, pack.layout)
        else:
            options["attention_mask"] = torch.ones_like(pack.input_ids)
            with attending_trees(model, pack.layout):
                output = computed(input_ids=pack.input_ids, **options)
        self._kind, self._rest = type(output), dict(output)
        hidden = self._rest.pop("last_hidden_state" if self._body else "logits")
        self.hidden_MD = hidden.flatten(0, 1)[pack.places_M]

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """The model's logits of hidden states, float32. Shape [M, V]."""
        if self._body is None:
            return hidden_MD.float()
        ids = torch.zeros(1, len(hidden_MD), dtype=torch.long, device=hidden_MD.device)
        with self._given(hidden_MD[None]):
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0].float()
        return logits

    def chunks(self, targets: Targets) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probs of the targets and whether each was the likeliest, some at a time. Without gradient."""
        size = self._chunk_size
        for start in range(0, len(self.hidden_MD), size):
            part = targets.part(start, start + size)
            logits = _adjusted(self.logits(self.hidden_MD[start : start + size]), part)
            yield _chosen(logits, part.ids_M), logits.argmax(-1) == part.ids_M

    def logprobs(self, targets: Targets) -> torch.Tensor:
        """The log-prob of every target, with gradient. Shape [M]."""
        if len(self.hidden_MD) * self._vocabulary <= KEPT_LOGITS:
            return self._part(self.hidden_MD, targets)
        size = self._chunk_size
        return torch.cat(
            [
                checkpoint(  # type: ignore[no-untyped-call]
                    self._part,
                    self.hidden_MD[start : start + size],
                    targets.part(start, start + size),
                    use_reentrant=False,
                )
                for start in range(0, len(self.hidden_MD), size)
            ]
        )

    def _part(self, hidden_MD: torch.Tensor, targets: Targets) -> torch.Tensor:
        return _chosen(_adjusted(self.logits(hidden_MD), targets), targets.ids_M)

    @property
    def _vocabulary(self) -> int:
        return int(self._model.get_input_embeddings().num_embeddings)

    @property
    def _chunk_size(self) -> int:
        return max(1, _CHUNK_LOGITS // self._vocabulary)

    @contextmanager
    def _given(self, hidden: torch.Tensor) -> Iterator[None]:
        """Have the body return hidden states instead of computing any."""
        output = self._kind(last_hidden_state=hidden, **self._rest)
        self._body.forward = lambda *_, **__: output
        try:
            yield
        finally:
            del self._body.forward


def _body(model: Any) -> Any:
    """The module whose output is a model's last hidden states; None if its logits are all it gives."""
    if not isinstance(model, PreTrainedModel):
        return None
    found = model.get_decoder()  # type: ignore[no-untyped-call]
    parts = (part for part in model.children() if isinstance(part, PreTrainedModel))
    return next(parts, None) if found is None or found is model else found


def logprobs(model: Any, pack: Pack, targets: Targets) -> torch.Tensor:
    """The log-prob of every target of a pack, in nats, float32, with gradient. Shape [M]."""
    return Predictions(model, pack).logprobs(targets)


def _adjusted(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    if targets.temperatures_M is not None:
        logits = logits / targets.temperatures_M[:, None]
    if targets.removed_M is not None:
        rows = (targets.removed_M >= 0).nonzero()[:, 0]
        logits[rows, targets.removed_M[rows]] = float("-inf")
    return logits


def _chosen(logits: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
    # The backward pass of cross entropy holds three copies of the logits, that of logsumexp five.
    return -torch.nn.functional.cross_entropy(logits, ids_M, reduction="none")
