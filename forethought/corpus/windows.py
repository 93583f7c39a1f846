"""Documents as consecutive windows of tokens.

Design: every document is tokenised whole, without the special tokens a tokenizer would add around it, and
cut from its start into windows of ``window_tokens`` that do not overlap and never cross documents. The
last, shorter window is kept if it has ``min_window_tokens``, else dropped; a document shorter than that has
no window and is counted in a warning. The result is one Arrow file, cached under a fingerprint of
documents, tokenizer and sizes. The price of not packing documents together: short ones make short windows,
and tokens before a cut are not in the context of those after it.

A document with a prompt is a question and its answer, and is used whole or not at all: cut, it would grade
against half an answer (RLVR), teach one that stops anywhere (SFT), and leave the rest without its question.
One longer than a window is left out and counted. The price: long answers are lost until
``corpus.window_tokens`` is raised. Text without a prompt is cut: every token is still a true next one.

Windows hold text alone. The BOS that a tokenizer puts before every text is not part of them, even of one
that was tokenised with it or has it written out: rows made of windows get one each. What
the tokenizer puts after a text (or, by ``corpus.eos``, its end-of-text token) ends every document given as
text; its size in bytes is that of its name, as of any special token.

Question and answer are tokenised together, unless a token would hold the end of one and the start of the
other (`` 42`` after a question that ends with a space): then each on its own, because the start of that
answer would be part of its context. The price: such a document has tokens that its whole text has not.

A special token written out in the text (``<think>``) becomes that token. This is intended: worked
examples are written that way. Untrusted text can therefore contain markers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.corpus.left_out import LeftOut
from forethought.corpus.marks import matches, tokens_at, tokens_in, tokens_matching
from forethought.corpus.token_bytes import (
    decoded_vocabulary,
    offset_bytes,
    token_names,
    without_inserted_space,
)
from forethought.errors import InvalidInput
from forethought.special_tokens import Choice, SpecialTokens, document_end, special_tokens_of

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

_FORMAT_VERSION = 6  # of the cached table: increment it when cutting changes
_BATCH_BYTES = 2 << 20  # tokenising takes about fifty times that in memory
_MAX_BATCH_ROWS = 4096
_LOG = logging.getLogger(__name__)


def cut_windows(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    window_tokens: int,
    min_window_tokens: int,
    cache_dir: Path,
    eos: Choice = "tokenizer",
    marks_pattern: str = "",
) -> Dataset:
    """Tokenise and cut ``documents`` (from :func:`forethought.corpus.sources.open_source`).

    Columns: ``document_id`` (``notes.txt#0:3`` is window 3 of document ``notes.txt#0``),
    ``token_ids`` (N), ``token_bytes`` (N, or empty if unknown) and ``marks``, indices into the window's
    tokens: the token that contains the marked character or, if none does (whitespace), the next. A
    character split over several tokens marks the first. Tokens that hold any part of a match of
    ``marks_pattern`` in the text, its prompt left out, are marked too. ``prompt_tokens`` is the number of
    tokens at the start of a document that contain any of its prompt; ``entropies`` (N) are the source's, or
    empty.

    Raises:
        InvalidInput: inconsistent sizes, no window at all (every document too short, or with a prompt and
            too long), token ids outside the vocabulary, marks with a tokenizer that has no offsets.
    """
    if min_window_tokens > window_tokens:
        raise InvalidInput(
            f"corpus.min_window_tokens={min_window_tokens}: expected at most "
            f"corpus.window_tokens={window_tokens}; lower it"
        )
    special = SpecialTokens(special_tokens_of(tokenizer).bos_ids, document_end(tokenizer, eos))
    sizes = (window_tokens, min_window_tokens)
    fingerprint = _fingerprint(documents, tokenizer, special, sizes, marks_pattern)
    cutter = _Cutter(tokenizer, special, *sizes, marks_pattern)
    cache_dir.mkdir(parents=True, exist_ok=True)
    counts = cache_dir / f"windows-{fingerprint}.json"
    windows = documents.map(
        cutter,
        batched=True,
        batch_size=_batch_rows(documents),
        remove_columns=documents.column_names,
        features=_features(),
        new_fingerprint=fingerprint,
        cache_file_name=str(cache_dir / f"windows-{fingerprint}.arrow"),
        load_from_cache_file=counts.exists(),
        desc="tokenise",
    )
    if counts.exists():
        left_out = LeftOut.load(counts)
    else:
        left_out = cutter.left_out
        left_out.save(counts)
    _report(documents, windows, list(left_out.reasons(window_tokens, min_window_tokens)))
    return windows


def _report(documents: Dataset, windows: Dataset, reasons: Sequence[str]) -> None:
    """Warn about documents without a window, whether they were cut now or earlier; refuse none at all."""
    for reason in reasons:
        _LOG.warning("of %d documents from %s on, %s", len(documents), documents[0]["id"], reason)
    if not len(windows):
        raise InvalidInput(
            f"got {len(documents)} documents from {documents[0]['id']} on, expected at least one window: "
            + "; ".join(reasons)
        )


def _features() -> Features:
    from datasets import Features, List, Value

    return Features(
        {
            "document_id": Value("string"),
            "token_ids": List(Value("int32")),
            "token_bytes": List(Value("int32")),
            "marks": List(Value("int32")),
            "prompt_tokens": Value("int32"),
            "entropies": List(Value("float32")),
        }
    )


@dataclass(frozen=True, slots=True)
class _Tokenised:
    """A whole document in tokens; ``sizes_N`` are byte lengths, empty if unknown."""

    document_id: str
    token_ids_N: Sequence[int]
    sizes_N: Sequence[int]
    marks: Sequence[int]
    prompt_tokens: int = 0
    entropies_N: Sequence[float] = ()


@dataclass
class _Cutter:
    """A batch of documents in, their windows out, for ``Dataset.map``; counts what it skips."""

    tokenizer: PreTrainedTokenizerBase
    special: SpecialTokens
    window_tokens: int
    min_window_tokens: int
    marks_pattern: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...] | None:
        """The vocabulary is scanned once, and not at all for windows from the cache."""
        return decoded_vocabulary(self.tokenizer)

    @cached_property
    def vocabulary_bytes(self) -> tuple[int, ...] | None:
        """The size of every token, None if the vocabulary does not tell."""
        return None if self.vocabulary is None else tuple(map(len, self.vocabulary))

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest id: a vocabulary may have holes."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The windows of a batch, in document order."""
        windows: list[tuple[Any, ...]] = []
        for document in map(self._without_bos, self._tokenise(batch)):
            num_tokens = len(document.token_ids_N)
            if num_tokens < self.min_window_tokens:
                self.left_out.num_short += 1
            elif document.prompt_tokens and num_tokens > self.window_tokens:
                self.left_out.num_long += 1
            else:
                windows.extend(self._cut(document))
        columns = ("document_id", "token_ids", "token_bytes", "marks", "prompt_tokens", "entropies")
        return {name: [window[i] for window in windows] for i, name in enumerate(columns)}

    def _cut(self, document: _Tokenised) -> Iterator[tuple[Any, ...]]:
        starts = range(0, len(document.token_ids_N), self.window_tokens)
        for number, start in enumerate(starts):
            end = start + self.window_tokens
            token_ids_N = document.token_ids_N[start:end]
            if len(token_ids_N) >= self.min_window_tokens:
                marks = [mark - start for mark in document.marks if start <= mark < end]
                window_id = f"{document.document_id}:{number}"
                sizes_N, entropies_N = document.sizes_N[start:end], document.entropies_N[start:end]
                prompt_tokens = document.prompt_tokens  # 0 if there is more than one window
                yield window_id, token_ids_N, sizes_N, marks, prompt_tokens, entropies_N

    def _without_bos(self, document: _Tokenised) -> _Tokenised:
        token_ids_N = self.special.without_bos(document.token_ids_N)
        num_cut = len(document.token_ids_N) - len(token_ids_N)
        if not num_cut:
            return document
        return _Tokenised(
            document.document_id,
            token_ids_N,
            document.sizes_N[num_cut:],
            [mark - num_cut for mark in document.marks if mark >= num_cut],
            max(0, document.prompt_tokens - num_cut),
            document.entropies_N[num_cut:],
        )

    def _tokenise(self, batch: dict[str, list[Any]]) -> Iterator[_Tokenised]:
        texts = [text for text in batch["text"] if text is not None]
        with_marks = any((*batch["marks"], *batch["prompt_chars"], self.marks_pattern))
        encoded = iter(self._encode(texts, with_marks=with_marks))
        for i, document_id in enumerate(batch["id"]):
            if batch["text"][i] is None:
                entropies_N = batch["entropies"][i] or ()
                yield self._pretokenised(
                    document_id, batch["token_ids"][i], batch["marks"][i], entropies_N
                )
            else:
                text, prompt_chars = batch["text"][i], batch["prompt_chars"][i]
                token_ids_N, offsets_N = next(encoded)
                if any(start < prompt_chars < end for start, end in offsets_N or ()):
                    token_ids_N, offsets_N, sizes_N = self._apart(text, prompt_chars)
                else:
                    sizes_N = self._sizes(token_ids_N, text, offsets_N)
                yield _Tokenised(
                    document_id,
                    [*token_ids_N, *self.special.eos_ids],
                    sizes_N and [*sizes_N, *self._eos_sizes],
                    self._marked(batch["marks"][i], offsets_N, text, prompt_chars),
                    _prompt_tokens(prompt_chars, offsets_N),
                )

    def _marked(
        self, marks: list[int], offsets_N: Any, text: str, prompt_chars: int
    ) -> Sequence[int]:
        """Indices of the tokens that the record or the pattern marks, ascending."""
        given = tokens_at(marks, offsets_N)
        if not self.marks_pattern:
            return given
        found = tokens_in(matches(self.marks_pattern, text, prompt_chars), offsets_N)
        return sorted({*given, *found})

    def _apart(self, text: str, prompt_chars: int) -> tuple[list[int], Any, list[int]]:
        """Token ids, offsets and sizes of a question and its answer, each tokenised on its own."""
        texts = [text[:prompt_chars], text[prompt_chars:]]
        (asked_ids, asked), (answer_ids, answer) = self._encode(texts, with_marks=True)
        sizes = [
            *self._sizes(asked_ids, texts[0], asked),
            *self._sizes(answer_ids, texts[1], answer),
        ]
        moved = [(start + prompt_chars, end + prompt_chars) for start, end in answer]
        return [*asked_ids, *answer_ids], [*asked, *moved], sizes

    def _encode(self, texts: list[str], with_marks: bool) -> Iterator[tuple[list[int], Any]]:
        """(token ids, offsets) of each text; offsets cost time and are None if not needed."""
        if not texts:
            return
        if with_marks and not self.tokenizer.is_fast:
            raise InvalidInput(
                "got marks, prompts or a marks_pattern and the slow tokenizer "
                f"{type(self.tokenizer).__name__}, expected a fast one, whose offsets map characters to "
                "tokens; convert it"
            )
        with_offsets = with_marks or (self.tokenizer.is_fast and self.vocabulary_bytes is None)
        encoding = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=with_offsets,
            verbose=False,
        )
        offsets = encoding["offset_mapping"] if with_offsets else [None] * len(texts)
        yield from zip(encoding["input_ids"], offsets, strict=True)

    def _sizes(self, token_ids_N: list[int], text: str, offsets_N: Any) -> list[int]:
        if self.vocabulary_bytes is not None:
            return without_inserted_space(
                [self.vocabulary_bytes[token_id] for token_id in token_ids_N], text
            )
        return [] if offsets_N is None else offset_bytes(text, offsets_N)

    @cached_property
    def _eos_sizes(self) -> list[int]:
        names = self.tokenizer.convert_ids_to_tokens(list(self.special.eos_ids))
        return [len(name.encode()) for name in names]

    def _pretokenised(
        self,
        document_id: str,
        token_ids_N: list[int],
        marks: list[int],
        entropies_N: Sequence[float],
    ) -> _Tokenised:
        """A document whose source is already tokenised."""
        if max(token_ids_N) >= self.vocabulary_size:
            raise InvalidInput(
                f"{document_id}: got token id {max(token_ids_N)}, expected ids below the "
                f"vocabulary's {self.vocabulary_size}; it was tokenised for another model: provide the text"
            )
        sizes = self.vocabulary_bytes and [self.vocabulary_bytes[i] for i in token_ids_N]
        marks = sorted({*marks, *self._matching(token_ids_N)})
        return _Tokenised(document_id, token_ids_N, sizes or (), marks, entropies_N=entropies_N)

    def _matching(self, token_ids_N: list[int]) -> list[int]:
        """Indices of the tokens that the pattern marks in a document without a text."""
        if not self.marks_pattern:
            return []
        spelling = [self._spelling[i] for i in token_ids_N]
        separator = b" " if self.vocabulary is None else b""
        return tokens_matching(self.marks_pattern, spelling, separator)

    @cached_property
    def _spelling(self) -> tuple[bytes, ...]:
        """The text of every token; special ones have none."""
        pieces = token_names(self.tokenizer) if self.vocabulary is None else self.vocabulary
        special_ids = frozenset(self.tokenizer.all_special_ids)
        return tuple(b"" if i in special_ids else piece for i, piece in enumerate(pieces))


def _prompt_tokens(prompt_chars: int, offsets_N: Any) -> int:
    """How many tokens the prompt has."""
    return sum(start < prompt_chars for start, _ in offsets_N) if prompt_chars else 0


def _batch_rows(documents: Dataset) -> int:
    """The number of rows that make about 2 MiB, so that memory depends on text size, not row count."""
    bytes_per_row: int = max(1, documents.data.nbytes // max(1, len(documents)))
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // bytes_per_row))


def _fingerprint(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    special: SpecialTokens,
    sizes: tuple[int, int],
    marks_pattern: str,
) -> str:
    """Equal iff the windows are, regardless of the tokenizer object's earlier use."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Both may be set by earlier calls and are off in ours.
        state.update(truncation=None, padding=None)
    else:
        state = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    convention = (special.bos_ids, special.eos_ids)
    parts = [_FORMAT_VERSION, documents._fingerprint, *sizes, *convention, state, marks_pattern]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
