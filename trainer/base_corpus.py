"""Tokenizer and training windows for the small base model that ``forethought up`` trains from a corpus.

Design: a byte-level BPE tokenizer trained on the corpus itself, and a share of windows with a
*quoted thought*: ``<think>``, a short span copied from the preceding text, ``</think>``.
A base that never saw the markers would neither close its thoughts nor gain anything from them, so
reinforcement would have no signal to start from. Quotes teach it that a thought is short, is about
the context, and is followed by the rest of the text; they need no labels. The price: the marker gets
some probability everywhere (the no-think scorer removes it), and a little text at the end of
those windows is not trained on.

Training a BPE costs the length of its distinct words times the merges, so text without spaces (a genome,
base64, Thai) is one huge word that takes minutes. The tokenizer sees such a run of characters in pieces,
and only the first ``_MAX_RUN_CHARACTERS`` of them: enough for a small vocabulary. The price: no token spans
two pieces, and what occurs only in later runs has no tokens beyond its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, TypeVar

from forethought.errors import InvalidInput
from forethought.types import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Value = TypeVar("Value")

_END, _PAD = "<|end|>", "<|pad|>"
_NUM_BYTES = 256
_PIECE_CHARACTERS = 64
_MAX_RUN_CHARACTERS = 200_000
_RUN = re.compile(rf"\s?\S{{{_PIECE_CHARACTERS},}}|\s{{{_PIECE_CHARACTERS},}}")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, think_open: str, think_close: str
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text survives encoding and decoding.

    The vocabulary is the special tokens (end, pad, both think markers), all 256 bytes and as many
    merges as fit and as ``texts`` yield: a small corpus yields fewer, no text at all yields none. The
    same texts give the same tokenizer.

    Raises:
        InvalidInput: the markers are empty or not distinct from each other and from the end and pad
            tokens, or the vocabulary is too small for the special tokens and the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special_tokens = [_END, _PAD, think_open, think_close]
    _check_tokens(special_tokens, vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_trained_on(texts), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[think_open, think_close],
        clean_up_tokenization_spaces=False,
    )


def _trained_on(texts: Iterable[str]) -> Iterator[str]:
    """``texts``, with long runs without a space (or of nothing else) cut into pieces, up to a limit."""
    num_left = _MAX_RUN_CHARACTERS
    for text in texts:
        end = 0
        for run in _RUN.finditer(text):
            yield text[end : run.start()]
            end = run.end()
            kept = run[0][:num_left]
            num_left -= len(kept)
            yield from (
                kept[start : start + _PIECE_CHARACTERS]
                for start in range(0, len(kept), _PIECE_CHARACTERS)
            )
        yield text[end:]


def quote_thoughts(
    document: Document,
    rng: Random,
    open_id: int,
    close_id: int,
    share: float,
    max_quote_tokens: int,
    thought_weight: float = 10.0,
) -> Document:
    """With probability ``share``, insert one thought that quotes the preceding text.

    The thought is inserted at a uniformly random index with at least one token before and one after
    it; the quote is a random span of 0 to ``max_quote_tokens`` preceding tokens. The window keeps its
    length N: its end is cut off. Marks shift or are cut off with it; the thought's tokens count as
    0 bytes of corpus; entropies are dropped, because they were computed in another context. A document
    with a prompt becomes longer instead, because its end is the end of an answer.

    In the next-token loss the quote and the close marker have weight ``thought_weight``, because thoughts
    are a few tokens of a window and one that does not close is useless; the open marker, whose position
    is unpredictable, has weight 0, so that the model does not learn to expect one in plain text.

    A window that already has a thought, or has fewer than 4 tokens, is returned unchanged. The same
    state of ``rng`` gives the same document.
    """
    N = len(document.token_ids_N)
    if rng.random() >= share or N < 4 or open_id in document.token_ids_N:
        return document
    index = rng.randint(1, N - 3)
    quote_tokens = rng.randint(0, min(max_quote_tokens, index, N - 3 - index))
    start = rng.randint(0, index - quote_tokens)
    thought = (open_id, *document.token_ids_N[start : start + quote_tokens], close_id)
    weights = (0.0,) + (thought_weight,) * (len(thought) - 1)
    moved = (mark + len(thought) if mark >= index else mark for mark in document.marks)
    has_prompt = 0.0 in document.nll_weights_N
    kept = N + len(thought) if has_prompt else N
    return replace(
        document,
        token_ids_N=_splice(document.token_ids_N, index, thought)[:kept],
        token_bytes_N=_splice(document.token_bytes_N, index, (0,) * len(thought))[:kept],
        marks=tuple(mark for mark in moved if mark < kept),
        entropies_N=(),
        nll_weights_N=_splice(document.nll_weights_N or (1.0,) * N, index, weights)[:kept],
    )


def _splice(
    values_N: tuple[Value, ...], index: int, inserted: Sequence[Value]
) -> tuple[Value, ...]:
    """Insert before ``index``; empty values stay empty."""
    return (*values_N[:index], *inserted, *values_N[index:]) if values_N else ()


def _check_tokens(special_tokens: list[str], vocab_size: int) -> None:
    if not all(special_tokens) or len(set(special_tokens)) < len(special_tokens):
        raise InvalidInput(
            f"got the special tokens {special_tokens} (end, pad, think open, think close), "
            "expected four distinct, non-empty ones; change model.think_open or model.think_close"
        )
    if vocab_size < _NUM_BYTES + len(special_tokens):
        raise InvalidInput(
            f"base.vocab_size={vocab_size}: expected at least {_NUM_BYTES + len(special_tokens)}, "
            "for 256 bytes and the special tokens; raise it"
        )
