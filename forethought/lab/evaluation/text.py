"""The text that models are evaluated on: documents, the proxy's entropies in them, and their places.

Design: documents are the first of the corpus's own seeded order, each once, so that more of them only adds.
Entropies are the corpus's own where it was curated and no proxy is asked for. A place whose target is a
think marker is left out, as in training, and so is one whose context leaves no room for a thought: the
price is that the far end of windows as long as the model's context is never asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.config.sections import CorpusSection
from forethought.corpus.mixture import open_corpus
from forethought.errors import InvalidInput
from forethought.lab.evaluation.splits import CandidatePosition, is_uncertain_and_unmarked
from forethought.objectives.parts.positions import valid
from forethought.types import Document

TOP_K = 16  # candidates that an entropy is over, as RPT has it
_BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Noise:
    """What is called noise: the marks of a field of the corpus, or what is uncertain and not marked.

    Example:
        ``Noise(field="noise").definition == "positions marked in the field 'noise'"``
    """

    field: str = ""
    min_entropy: float = 1.0

    @property
    def definition(self) -> str:
        """In words."""
        if self.field:
            return f"positions marked in the field {self.field!r}"
        return (
            f"positions of entropy >= {self.min_entropy:g} nats that the corpus does not mark; none in a "
            "corpus without marks"
        )


def read_documents(
    section: CorpusSection, tokenizer: Any, num_documents: int, seed: int, cache: Path
) -> list[Document]:
    """At most ``num_documents`` windows of the corpus, two tokens long at least, each once."""
    corpus = open_corpus(section, tokenizer, seed, cache)
    drawn = corpus.take(min(num_documents, corpus.num_windows))
    different = {(d.source, d.document_id): d for d in drawn if len(d.token_ids_N) > 1}
    if not different:
        raise InvalidInput("every window of the corpus has one token; expected two at least")
    return list(different.values())


def noise_marks(
    section: CorpusSection, tokenizer: Any, noise: Noise, seed: int, cache: Path
) -> dict[tuple[str, str], frozenset[int]]:
    """Token indices that the noise field marks, by source and document; nothing without a field."""
    if not noise.field:
        return {}
    sources = tuple(
        source.model_copy(update={"marks_field": noise.field})
        for source in section.resolved_sources()
    )
    marked = section.model_copy(update={"path": "", "sources": sources})
    corpus = open_corpus(marked, tokenizer, seed, cache)
    documents = corpus.take(corpus.num_windows)
    return {(d.source, d.document_id): frozenset(d.marks) for d in documents}


def find_entropies(
    language_model: Any, documents: Sequence[Document], report: Callable[[int], None]
) -> list[tuple[float, ...]]:
    """The proxy's entropies in nats, one a token, over the 16 likeliest, not renormalised."""
    from forethought.compute.entropy import EntropyQuery, entropies

    found: list[tuple[float, ...]] = []
    for start in range(0, len(documents), 256):
        part = documents[start : start + 256]
        queries = [EntropyQuery(document.token_ids_N, TOP_K, False) for document in part]
        asked = entropies(language_model.model, queries, _BATCH_TOKENS)
        found += [(0.0, *(max(0.0, value) for value in values)) for values in asked]
        report(len(found))
    return found


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """Where a thought fits: the last index that may be asked about, the target's tokens, and what is no
    target.

    Example:
        ``LengthLimit(max_index=2038, target_tokens=1, markers=frozenset({39, 40}))``
    """

    max_index: int
    target_tokens: int
    markers: frozenset[int]


def candidate_positions(
    documents: Sequence[Document],
    entropies: Sequence[Sequence[float]],
    marked_noise: dict[tuple[str, str], frozenset[int]],
    noise: Noise,
    room: LengthLimit,
) -> list[CandidatePosition]:
    """Every place of the documents that can be asked about, with what splits need to know of it."""
    has_marks = any(document.marks for document in documents)
    found = []
    for number, (document, entropies_N) in enumerate(zip(documents, entropies, strict=True)):
        name, marks = f"{document.source}/{document.document_id}", frozenset(document.marks)
        given = marked_noise.get((document.source, document.document_id), frozenset())
        for index in valid(document, room.target_tokens):
            target = document.token_ids_N[index : index + room.target_tokens]
            if index > room.max_index or room.markers & set(target):
                continue
            place = CandidatePosition(
                number, name, index, entropies_N[index], index in marks, index in given
            )
            if not noise.field and has_marks:
                place = replace(place, is_noise=is_uncertain_and_unmarked(place, noise.min_entropy))
            found.append(place)
    return found


def plain_text_nll(
    language_model: Any, documents: Sequence[Document], head_ids: tuple[int, ...], open_id: int
) -> float:
    """Mean no-think NLL in nats of every token but a window's first, think-open mass removed.

    Windows with a thought in them are left out; nan where there is no other.
    """
    from forethought.compute.logprob import Continuation, score_continuations

    plain = [d.token_ids_N for d in documents if open_id not in d.token_ids_N]
    queries = [Continuation((*head_ids, ids[0]), ids[1:], removed_id=open_id) for ids in plain]
    scored = score_continuations(language_model.model, queries, _BATCH_TOKENS)
    num_tokens = sum(len(result.logprobs_H) for result in scored)
    return -sum(result.total for result in scored) / num_tokens if num_tokens else float("nan")
