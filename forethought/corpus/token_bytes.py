"""How many bytes of text a token represents, to convert nats per token into bits per byte.

Design: derived from the vocabulary if possible, since that also works for text that was tokenised
elsewhere:

- byte-level BPE: every character of a token's name is one byte;
- sentencepiece style: ``▁`` is a space, ``<0xAB>`` one byte, anything else is literal;
- any other fast tokenizer (WordLevel, WordPiece): from offsets; whitespace counts towards the token
  that follows it, trailing whitespace of a document towards none;
- a slow tokenizer, or token ids without text and without such a vocabulary: unknown.

The price: a space that a tokenizer inserts before a document counts as one byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"
# Byte-level names map printable Latin-1 to itself and the other bytes, ascending, to U+0100 and up.
_SHOWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_MOVED = dict(enumerate(sorted({*range(0x100)} - _SHOWN), start=0x100))


def vocabulary_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """Byte length by token id (0 for ids without a token), or None if the vocabulary does not tell."""
    pieces = decoded_vocabulary(tokenizer)
    return None if pieces is None else tuple(map(len, pieces))


def decoded_vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...] | None:
    """The bytes of every token id (empty for ids without a token), or None as above."""
    decode = (
        _name_decoder(json.loads(tokenizer.backend_tokenizer.to_str()))
        if tokenizer.is_fast
        else None
    )
    return None if decode is None else _pieces(tokenizer, decode)


def token_names(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...]:
    """Every token's literal name, for vocabularies that do not define the text between tokens."""
    return _pieces(tokenizer, str.encode)


def _pieces(
    tokenizer: PreTrainedTokenizerBase, decode: Callable[[str], bytes]
) -> tuple[bytes, ...]:
    vocabulary = tokenizer.get_vocab()
    # Added tokens are matched in the text before any alphabet applies: their names are literal.
    added = set(tokenizer.get_added_vocab())
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        pieces[token_id] = token.encode() if token in added else decode(token)
    return tuple(pieces)


def offset_bytes(text: str, offsets_N: Sequence[tuple[int, int]]) -> list[int]:
    """Byte length of each token from its (start, end) characters: all text since the previous token."""
    sizes, done = [], 0
    for _, end in offsets_N:
        sizes.append(len(text[done:end].encode()))
        done = max(done, end)
    return sizes


def _name_decoder(state: dict[str, Any]) -> Callable[[str], bytes] | None:
    """The function from a token's name to its bytes, chosen by the serialised tokenizer's parts."""
    parts = _part_types([state.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])
    if "ByteLevel" in parts:
        return _byte_level
    if "Metaspace" in parts or "ByteFallback" in parts:
        return _sentencepiece
    return None


def _part_types(value: Any) -> set[str]:
    """Every ``type`` at any depth, since parts nest in sequences."""
    if isinstance(value, list):
        return set().union(*map(_part_types, value))
    if isinstance(value, dict):
        return {str(value.get("type"))} | _part_types(list(value.values()))
    return set()


def _byte_level(token: str) -> bytes:
    """Every character of a byte-level name is one byte, even one outside the byte alphabet."""
    return bytes(_byte_of(character) for character in token)


def _byte_of(character: str) -> int:
    code = ord(character)
    moved: int = _MOVED.get(code, code & 0xFF)
    return moved


def _sentencepiece(token: str) -> bytes:
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode()
