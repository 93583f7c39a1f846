"""The endless weighted mixture of sources that a run draws its documents from.

Design: every draw is a function of the seed and of counters. The source of document n is chosen by
comparing a hash of (seed, n) with the weights; within a source, every pass goes through a new permutation
of its windows, derived from (seed, source name, pass). So the whole state is a handful of counters
(:class:`CorpusCursor`), and a resumed run continues with exactly the document it would have drawn. Only
hashes and raw PCG64 bits are used, which are stable across versions of Python and numpy. The price: a
permutation takes 8 bytes per window in memory and is sorted once per pass (about a second for ten million
windows).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.config.sections import CorpusSection
from forethought.corpus.sources import open_source
from forethought.corpus.windows import cut_windows
from forethought.errors import InvalidInput
from forethought.types import Document

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_NUM_DIGEST_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class SourceCursor:
    """How far one source has been read: ``index`` windows into pass number ``passes`` (from 0).

    ``digest`` is a hash of the source's windows, so that a cursor is not applied to other text.

    Example:
        ``SourceCursor("notes.txt", digest="4be1c09a5d6f7e88", passes=1, index=40)``
    """

    name: str
    digest: str
    passes: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class CorpusCursor:
    """The whole state of a :class:`Corpus`.

    Example:
        ``CorpusCursor(seed=0, num_drawn=140, sources=(SourceCursor("notes.txt", "4be1…", 1,
        40),))``
    """

    seed: int
    num_drawn: int
    sources: tuple[SourceCursor, ...]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CorpusCursor:
        """The inverse of :meth:`to_json`.

        Raises:
            InvalidInput: the text is not a cursor.
        """
        try:
            fields = json.loads(text)
            sources = tuple(SourceCursor(**source) for source in fields.pop("sources"))
            return cls(sources=sources, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(
                f"got {text!r:.80}, expected a corpus cursor in JSON as CorpusCursor.to_json "
                f"writes it ({error!r}); restore an intact checkpoint or start a new run"
            ) from error


@dataclass(frozen=True, slots=True)
class WindowedSource:
    """A source that is ready to draw from, with the windows that :func:`cut_windows` returned.

    Example:
        ``WindowedSource("notes.txt", weight=1.0, windows=dataset)``
    """

    name: str
    weight: float
    windows: Dataset


class Corpus:
    """An endless weighted mixture of windows.

    ``take`` draws documents; ``cursor`` is the state, ``seek`` restores one. Weights may differ
    between a cursor's run and this one: later draws follow the new weights. Not thread-safe.
    """

    def __init__(self, sources: Sequence[WindowedSource], seed: int) -> None:
        """Start at the beginning; names must be distinct, weights need not sum to 1.

        Raises:
            InvalidInput: no sources, or two with the same name.
        """
        if not sources:
            raise InvalidInput(
                "got no corpus sources, expected at least one; set corpus.path or corpus.sources"
            )
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise InvalidInput(
                f"got the corpus sources {names}, expected different names, since metrics and "
                "cursors are keyed by them; set the name of each source"
            )
        self._sources = tuple(sources)
        self._seed = seed
        self._bounds = list(accumulate(source.weight for source in sources))
        self._digests = tuple(digest_of(source.windows) for source in sources)
        self._permutations: dict[int, tuple[int, Any]] = {}
        self._num_drawn = 0
        self._cursors = [(0, 0)] * len(sources)  # (passes, index) of each source

    @property
    def num_windows(self) -> int:
        """The total number of windows."""
        return sum(self.windows_per_source.values())

    @property
    def windows_per_source(self) -> dict[str, int]:
        """Windows by source name, for a log line."""
        return {source.name: len(source.windows) for source in self._sources}

    @property
    def cursor(self) -> CorpusCursor:
        """The current state, which determines all further draws."""
        return CorpusCursor(
            self._seed,
            self._num_drawn,
            tuple(
                SourceCursor(source.name, digest, *cursor)
                for source, digest, cursor in zip(
                    self._sources, self._digests, self._cursors, strict=True
                )
            ),
        )

    def seek(self, cursor: CorpusCursor) -> None:
        """Restore the state ``cursor``.

        Raises:
            InvalidInput: it was taken with another seed, other sources or other windows.
        """
        differences = list(_differences(cursor, self.cursor))
        if differences:
            raise InvalidInput(
                f"the run in this run.directory was trained on another corpus: {'; '.join(differences)}. "
                "Resume with the corpus, tokenizer, window sizes and seed of its run, or start a new run "
                "with another run.directory"
            )
        for source, saved in zip(self._sources, cursor.sources, strict=True):
            if not (0 <= saved.index <= len(source.windows) and saved.passes >= 0):
                raise InvalidInput(
                    f"got window {saved.index} of pass {saved.passes} of {source.name!r}, "
                    f"expected 0 to {len(source.windows)}; restore an intact checkpoint"
                )
        self._num_drawn = cursor.num_drawn
        self._cursors = [(source.passes, source.index) for source in cursor.sources]

    def take(self, num_documents: int) -> list[Document]:
        """The next ``num_documents`` documents, never fewer."""
        return [self._draw() for _ in range(num_documents)]

    def _draw(self) -> Document:
        share = _uniform(f"source/{self._seed}/{self._num_drawn}") * self._bounds[-1]
        # Without the last bound, so that rounding cannot select beyond the last source.
        number = bisect_right(self._bounds[:-1], share)
        source = self._sources[number]
        passes, index = self._cursors[number]
        if index == len(source.windows):
            passes, index = passes + 1, 0
        row = source.windows[int(self._permutation(number, passes)[index])]
        self._cursors[number] = (passes, index + 1)
        self._num_drawn += 1
        return Document(
            document_id=row["document_id"],
            source=source.name,
            token_ids_N=tuple(row["token_ids"]),
            token_bytes_N=tuple(row["token_bytes"]),
            marks=tuple(row["marks"]),
            entropies_N=tuple(row["entropies"]),
            nll_weights_N=_weights(row["prompt_tokens"], len(row["token_ids"])),
        )

    def _permutation(self, number: int, passes: int) -> Any:
        """The order of a source's windows in one pass; the latest is cached."""
        kept = self._permutations.get(number)
        if kept is None or kept[0] != passes:
            source = self._sources[number]
            order = _permuted(f"pass/{self._seed}/{source.name}/{passes}", len(source.windows))
            kept = self._permutations[number] = (passes, order)
        return kept[1]


def _differences(saved: CorpusCursor, given: CorpusCursor) -> Iterator[str]:
    """What a cursor was saved with and what is given now, where they differ."""
    if saved.seed != given.seed:
        yield f"got run.seed {given.seed}, expected {saved.seed}"
    names = [[source.name for source in cursor.sources] for cursor in (given, saved)]
    if names[0] != names[1]:
        yield f"got the sources {names[0]}, expected {names[1]}"
        return
    for before, now in zip(saved.sources, given.sources, strict=True):
        if before.digest != now.digest:
            yield f"source {now.name!r} has other windows (its text, the tokenizer or corpus.window_tokens)"


def open_corpus(
    section: CorpusSection, tokenizer: PreTrainedTokenizerBase, seed: int, cache_dir: Path
) -> Corpus:
    """Read, tokenise and cut every source of ``section``, or load it from ``cache_dir``.

    Raises:
        InvalidInput: see :func:`open_source`, :func:`cut_windows` and :class:`Corpus`.
    """
    sources = []
    for source in section.resolved_sources():
        windows = cut_windows(
            open_source(source, cache_dir),
            tokenizer,
            section.window_tokens,
            section.min_window_tokens,
            cache_dir,
            section.eos,
            source.marks_pattern,
        )
        sources.append(WindowedSource(source.name, source.weight, windows))
    return Corpus(sources, seed)


def _weights(num_prompt: int, num_tokens: int) -> tuple[float, ...]:
    """Weight 0 for the prompt's tokens, 1 for the rest; empty (1 everywhere) without a prompt."""
    return (0.0,) * num_prompt + (1.0,) * (num_tokens - num_prompt) if num_prompt else ()


def _hash(key: str) -> int:
    """A 64-bit hash of ``key``."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _uniform(key: str) -> float:
    """A float in [0, 1) determined by ``key``."""
    return (_hash(key) >> 11) * 2.0**-53


def _permuted(key: str, size: int) -> Any:
    """A permutation of ``range(size)`` determined by ``key``, as an int64 array."""
    import numpy as np

    # Sorts raw bits instead of using Generator.permutation: only the bit stream is guaranteed stable.
    return np.argsort(np.random.PCG64(_hash(key)).random_raw(size), kind="stable")


def digest_of(windows: Dataset) -> str:
    """A hash of the number of windows and a sample of them; the same on every machine."""
    size = len(windows)
    sample = windows[sorted({size * i // _NUM_DIGEST_WINDOWS for i in range(_NUM_DIGEST_WINDOWS)})]
    described = json.dumps(
        [size, sample["document_id"], [list(ids) for ids in sample["token_ids"]]]
    )
    return hashlib.sha256(described.encode()).hexdigest()[:16]
