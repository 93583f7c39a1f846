"""How many bytes of text a token represents, to convert nats per token into bits per byte.

Design: derived from the vocabulary if possible, since that also works for text that was tokenised
elsewhere:

- byte-level BPE: every character of a token's name is one byte, an added token's name is literal;
- sentencepiece style: ``▁`` is a space, ``<0xAB>`` one byte, anything else is literal;
- any other fast tokenizer (WordLevel, WordPiece): from offsets; whitespace counts towards the token
  that follows it, trailing whitespace of a document towards none;
- a slow tokenizer, or token ids without text and without such a vocabulary: unknown.

Names are a guess (Gemma's added token ``▁▁`` is two spaces, ``<0x0A>`` without a byte fallback is six
characters), so every token is decoded as well, between two letters because decoders strip the ends of a
text. Where the two differ, decoding is right, unless it gives no text: a part of a character, or an added
token's name that a byte-level decoder takes for bytes. The price: about a second for 150,000 tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"
_UNKNOWN = "\ufffd"  # what decoders give for bytes that are no character
# Byte-level names map printable Latin-1 to itself and the other bytes, ascending, to U+0100 and up.
_SHOWN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_MOVED = dict(enumerate(sorted({*range(0x100)} - _SHOWN), start=0x100))


def vocabulary_bytes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """Byte length by token id (0 for ids without a token), or None if the vocabulary does not tell."""
    pieces = decoded_vocabulary(tokenizer)
    return None if pieces is None else tuple(map(len, pieces))


def decoded_vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...] | None:
    """The bytes of every token id (empty for ids without a token), or None as above."""
    if not tokenizer.is_fast:
        return None
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    spell = _speller(state)
    if spell is None:
        return None
    spelled = _pieces(tokenizer, spell)
    return _checked(tokenizer, spelled) if state.get("decoder") else spelled


def token_names(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, ...]:
    """Every token's literal name, for vocabularies that do not define the text between tokens."""
    return _pieces(tokenizer, str.encode)


def _pieces(tokenizer: PreTrainedTokenizerBase, spell: Callable[[str], bytes]) -> tuple[bytes, ...]:
    vocabulary = tokenizer.get_vocab()
    # Added tokens are matched in the text before any alphabet applies: their names are literal.
    added = set(tokenizer.get_added_vocab())
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        pieces[token_id] = token.encode() if token in added else spell(token)
    return tuple(pieces)


def _checked(tokenizer: PreTrainedTokenizerBase, spelled: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The bytes that names spell, corrected by what their tokens decode to."""
    ids = sorted(set(tokenizer.get_vocab().values()))
    decode = partial(tokenizer.backend_tokenizer.decode_batch, skip_special_tokens=False)
    letter = _letter(spelled, ids, decode)
    if letter is None:  # nothing to decode between
        return spelled
    (around,) = decode([[letter]])
    pieces = list(spelled)
    for token_id, text in zip(ids, decode([[letter, i, letter] for i in ids]), strict=True):
        decoded = text[len(around) : len(text) - len(around)]
        is_text = text.startswith(around) and text.endswith(around) and _UNKNOWN not in decoded
        if is_text:
            pieces[token_id] = decoded.encode()
    return tuple(pieces)


def _letter(
    spelled: tuple[bytes, ...], ids: list[int], decode: Callable[[list[list[int]]], list[str]]
) -> int | None:
    """A token that decodes to itself whatever is around it."""
    letters = (i for i in ids if len(spelled[i]) == 1 and spelled[i].isalnum())
    return next((i for i in letters if decode([[i] * 3]) == [spelled[i].decode() * 3]), None)


def offset_bytes(text: str, offsets_N: Sequence[tuple[int, int]]) -> list[int]:
    """Byte length of each token from its (start, end) characters: all text since the previous token."""
    sizes, done = [], 0
    for _, end in offsets_N:
        sizes.append(len(text[done:end].encode()))
        done = max(done, end)
    return sizes


def without_inserted_space(sizes_N: list[int], text: str) -> list[int]:
    """The sizes without the space that many tokenizers insert before a text: it is no byte of it."""
    is_inserted = sum(sizes_N) == len(text.encode()) + 1 and not text.startswith(" ")
    return [sizes_N[0] - 1, *sizes_N[1:]] if is_inserted and sizes_N[0] else sizes_N


def _speller(state: dict[str, Any]) -> Callable[[str], bytes] | None:
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
