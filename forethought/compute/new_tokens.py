"""Tokens added to a tokenizer and its model: ids that were never used, rows that were never trained.

Design: both libraries assume that ids have no holes and that the embedding has a row per token. The
tokenizer would give a new token the id ``len(vocabulary)``, which is another token's where the vocabulary
has a hole; there, the token is written into the vocabulary itself, under the first id after the largest. An
embedding padded to a multiple of 64 already has rows for new ids, whatever their values: those are
initialised by transformers as if they had been appended, by cutting the padding off and growing it again.
The other padding keeps its values, because a model has learned to give those ids no probability. The price:
two copies of the embeddings for a moment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from forethought.errors import InvalidInput


def add_special_tokens(model: Any, tokenizer: Any, names: Sequence[str]) -> None:
    """Make each of ``names`` a special token; those that the tokenizer lacks get new ids and new rows.

    Raises:
        InvalidInput: the vocabulary has holes and cannot be extended after them.
    """
    vocabulary = tokenizer.get_vocab()
    num_before = max(vocabulary.values()) + 1
    missing = [name for name in names if name not in vocabulary]
    if missing and len(set(vocabulary.values())) < num_before:
        _write_into_vocabulary(tokenizer, missing, num_before)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(names)}, replace_extra_special_tokens=False
    )
    num_now = max(tokenizer.get_vocab().values()) + 1
    if num_now > num_before:
        _append_rows(model, num_before, num_now)


def _write_into_vocabulary(tokenizer: Any, names: Sequence[str], first_id: int) -> None:
    """Give ``names`` the ids from ``first_id`` on; an added token has the id its name has there."""
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    entries = state.get("model", {}).get("vocab")
    if not isinstance(entries, dict):
        raise InvalidInput(
            f"the vocabulary of {type(tokenizer).__name__} has holes (ids without a token), so a new token "
            "would get the id of another; expected no holes, or a fast BPE, WordLevel or WordPiece "
            "tokenizer: add the think markers to tokenizer and model yourself"
        )
    entries.update(zip(names, range(first_id, first_id + len(names)), strict=True))
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))  # there is no public setter


def _append_rows(model: Any, num_before: int, num_now: int) -> None:
    """Initialise rows ``num_before`` to ``num_now`` of both embeddings; rows after them stay."""
    num_rows = model.get_input_embeddings().num_embeddings
    padding = [tensor[num_now:].clone() for tensor in _tensors_by_row(model)]
    if num_rows > num_before:
        model.resize_token_embeddings(num_before)
    model.resize_token_embeddings(max(num_rows, num_now))
    with torch.no_grad():
        for tensor, values in zip(_tensors_by_row(model), padding, strict=True):
            tensor[num_now:] = values


def _tensors_by_row(model: Any) -> list[torch.Tensor]:
    """Everything that has a row per token: the embeddings and the output head, its bias included."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight, *([] if head is None else head.parameters())]
    return [parameter.detach() for parameter in found]
