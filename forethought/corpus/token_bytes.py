"""How many bytes of text a token stands for, which turns nats per token into bits per byte.

Design: the vocabulary says it where it can, since that also serves text that was tokenised
elsewhere:

- byte-level BPE: every character of a token's name is one byte; - sentencepiece style: ``▁`` is a
space, ``<0xAB>`` one byte, all else as written; - any other fast tokenizer (WordLevel,
WordPiece): from offsets, whitespace counting to the token that follows it; the whitespace at the
very end of a document belongs to none;
- a slow tokenizer, or token ids without text and without such a vocabulary: it cannot be said.

The price: a space that a tokenizer puts before a document on its own account counts as one byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"


def bytes_of_vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """Bytes by token id (0 for ids without a token), or None where the vocabulary does not say."""
    if not tokenizer.is_fast:
        return None
    count = _counter(json.loads(tokenizer.backend_tokenizer.to_str()))
    if count is None:
        return None
    vocabulary = tokenizer.get_vocab()
    # Added tokens are matched in the text before any alphabet applies: they are as written.
    added = set(tokenizer.get_added_vocab())
    sizes = [0] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        sizes[token_id] = len(token.encode()) if token in added else count(token)
    return tuple(sizes)


def bytes_of_offsets(text: str, offsets_N: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of each token from its (start, end) characters: all text since the token before it."""
    sizes, place = [], 0
    for _, end in offsets_N:
        sizes.append(len(text[place:end].encode()))
        place = max(place, end)
    return sizes


def _counter(state: dict[str, Any]) -> Any:
    """The function from a token's name to its bytes, by the parts of a serialised tokenizer."""
    parts = _part_types([state.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])
    if "ByteLevel" in parts:
        return len
    if "Metaspace" in parts or "ByteFallback" in parts:
        return _sentencepiece_bytes
    return None


def _part_types(value: Any) -> set[str]:
    """Every ``type`` at any depth: parts nest in sequences."""
    if isinstance(value, list):
        return set().union(*map(_part_types, value))
    if isinstance(value, dict):
        return {str(value.get("type"))} | _part_types(list(value.values()))
    return set()


def _sentencepiece_bytes(token: str) -> int:
    return 1 if _BYTE_TOKEN.fullmatch(token) else len(token.replace(_SPACE, " ").encode())
