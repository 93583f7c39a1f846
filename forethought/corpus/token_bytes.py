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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"
# Byte-level names show printable Latin-1 as itself and the other bytes, ascending, from U+0100 on.
_SHOWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_MOVED = dict(enumerate(sorted({*range(0x100)} - _SHOWN), start=0x100))


def vocabulary_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """Bytes by token id (0 for ids without a token), or None where the vocabulary does not say."""
    pieces = decoded_vocabulary(tokenizer)
    return None if pieces is None else tuple(map(len, pieces))


def decoded_vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...] | None:
    """What every token id stands for (nothing for ids without a token), None as above."""
    spell = (
        _name_decoder(json.loads(tokenizer.backend_tokenizer.to_str()))
        if tokenizer.is_fast
        else None
    )
    return None if spell is None else _pieces(tokenizer, spell)


def token_names(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...]:
    """Every token's name as it is written, for vocabularies that do not say what stands between two."""
    return _pieces(tokenizer, str.encode)


def _pieces(tokenizer: PreTrainedTokenizerBase, spell: Callable[[str], bytes]) -> tuple[bytes, ...]:
    vocabulary = tokenizer.get_vocab()
    # Added tokens are matched in the text before any alphabet applies: they are as written.
    added = set(tokenizer.get_added_vocab())
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        pieces[token_id] = token.encode() if token in added else spell(token)
    return tuple(pieces)


def offset_bytes(text: str, offsets_N: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of each token from its (start, end) characters: all text since the token before it."""
    sizes, place = [], 0
    for _, end in offsets_N:
        sizes.append(len(text[place:end].encode()))
        place = max(place, end)
    return sizes


def _name_decoder(state: dict[str, Any]) -> Callable[[str], bytes] | None:
    """The function from a token's name to its bytes, by the parts of a serialised tokenizer."""
    parts = _part_types([state.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])
    if "ByteLevel" in parts:
        return _byte_level
    if "Metaspace" in parts or "ByteFallback" in parts:
        return _sentencepiece
    return None


def _part_types(value: Any) -> set[str]:
    """Every ``type`` at any depth: parts nest in sequences."""
    if isinstance(value, list):
        return set().union(*map(_part_types, value))
    if isinstance(value, dict):
        return {str(value.get("type"))} | _part_types(list(value.values()))
    return set()


def _byte_level(token: str) -> bytes:
    """Every character of a byte-level name is one byte; one that is none counts as one too."""
    return bytes(_byte_of(character) for character in token)


def _byte_of(character: str) -> int:
    code = ord(character)
    moved: int = _MOVED.get(code, code & 0xFF)
    return moved


def _sentencepiece(token: str) -> bytes:
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode()
