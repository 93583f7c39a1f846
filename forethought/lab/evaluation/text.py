"""The text that models are evaluated on: documents, the proxy's entropies, and candidate positions.

Design: documents are the first of the corpus's seeded order, each once, so that a larger number only adds
documents. Entropies are the corpus's annotations if it was curated and no proxy is given. Positions whose
target is a think marker, or a token that no prediction can be (RPT), are excluded, as in training, and so
are those whose context leaves no room for a thought: the price is that the end of windows as long as the
model's context is never evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.config.sections import CorpusSection
from forethought.corpus.mixture import open_corpus
from forethought.errors import InvalidInput
from forethought.lab.evaluation.splits import CandidatePosition, is_uncertain_and_unmarked
from forethought.objectives.parts.positions import valid
from forethought.special_tokens import special_tokens_of
from forethought.types import Document, Prompting

if TYPE_CHECKING:
    from forethought.compute.model import Markers

TOP_K = 16  # number of tokens that an entropy covers, as in RPT
_BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Noise:
    """The definition of noise: the marks of a corpus field, or uncertain unmarked positions.

    Example:
        ``Noise(field="noise").definition == "positions marked in the field 'noise'"``
    """

    field: str = ""
    min_entropy: float = 1.0

    @property
    def definition(self) -> str:
        """A readable definition."""
        if self.field:
            return f"positions marked in the field {self.field!r}"
        return (
            f"positions of entropy >= {self.min_entropy:g} nats that the corpus does not mark; none in a "
            "corpus without marks"
        )


def read_documents(
    section: CorpusSection, tokenizer: Any, num_documents: int, seed: int, cache: Path
) -> list[Document]:
    """At most ``num_documents`` distinct windows of the corpus, of at least two tokens."""
    corpus = open_corpus(section, tokenizer, seed, cache)
    drawn = corpus.take(min(num_documents, corpus.num_windows))
    different = {(d.source, d.document_id): d for d in drawn if len(d.token_ids_N) > 1}
    if not different:
        raise InvalidInput(
            "every window of the corpus has one token; expected at least two: use longer documents"
        )
    return list(different.values())


def noise_marks(
    section: CorpusSection, tokenizer: Any, noise: Noise, seed: int, cache: Path
) -> dict[tuple[str, str], frozenset[int]]:
    """Token indices that the noise field marks, by source and document; nothing without a field."""
    if not noise.field:
        return {}
    sources = tuple(
        source.model_copy(update={"marks_field": noise.field, "marks_pattern": ""})
        for source in section.resolved_sources()
    )
    marked = section.model_copy(update={"path": "", "sources": sources})
    corpus = open_corpus(marked, tokenizer, seed, cache)
    documents = corpus.take(corpus.num_windows)
    return {(d.source, d.document_id): frozenset(d.marks) for d in documents}


def find_entropies(
    language_model: Any, documents: Sequence[Document], report: Callable[[int], None]
) -> list[tuple[float, ...]]:
    """The proxy's entropies in nats, one per token, over the 16 likeliest tokens, not renormalised.

    Raises:
        InvalidInput: an entropy is not finite.
    """
    from forethought.compute.entropy import EntropyQuery, entropies
    from forethought.compute.finite import check_finite

    bos_ids = special_tokens_of(language_model.tokenizer).bos_ids
    found: list[tuple[float, ...]] = []
    for start in range(0, len(documents), 256):
        part = documents[start : start + 256]
        queries = [EntropyQuery(d.token_ids_N, TOP_K, False, bos_ids) for d in part]
        batch = entropies(language_model.model, queries, _BATCH_TOKENS)
        check_finite(language_model.model, chain.from_iterable(batch), "an entropy")
        found += [(0.0, *(max(0.0, value) for value in values)) for values in batch]
        report(len(found))
    return found


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """The length limit of a position: the last index with limit for a thought, the number of target tokens,
    and what is never in a target, or never its first token.

    Example:
        ``LengthLimit(max_index=2038, target_tokens=1, markers=Markers((39,), (40,)))``
    """

    max_index: int
    target_tokens: int
    markers: Markers
    unpredictable_ids: frozenset[int] = frozenset()


def candidate_positions(
    documents: Sequence[Document],
    entropies: Sequence[Sequence[float]],
    marked_noise: dict[tuple[str, str], frozenset[int]],
    noise: Noise,
    limit: LengthLimit,
) -> list[CandidatePosition]:
    """Every position of the documents that can be evaluated, with the labels that splits need."""
    has_marks = any(document.marks for document in documents)
    found = []
    for number, (document, entropies_N) in enumerate(zip(documents, entropies, strict=True)):
        name, marks = f"{document.source}/{document.document_id}", frozenset(document.marks)
        given = marked_noise.get((document.source, document.document_id), frozenset())
        for index in valid(document, limit.target_tokens):
            target = document.token_ids_N[index : index + limit.target_tokens]
            if index > limit.max_index or limit.markers.occur_in(target):
                continue
            if target[0] in limit.unpredictable_ids:
                continue
            position = CandidatePosition(
                number, name, index, entropies_N[index], index in marks, index in given
            )
            if not noise.field and has_marks:
                position = replace(
                    position, is_noise=is_uncertain_and_unmarked(position, noise.min_entropy)
                )
            found.append(position)
    return found


def plain_text_nll(
    language_model: Any, documents: Sequence[Document], prompting: Prompting
) -> float:
    """Mean no-think NLL in nats of every token but a window's first, think-open mass removed.

    Windows with a thought in them are excluded (a think-open marker of one token tells); nan if there are
    no others.
    """
    from forethought.compute.logprob import Continuation, score_continuations

    plain = [d.token_ids_N for d in documents if prompting.open_id not in d.token_ids_N]
    queries = [Continuation.without_thought(prompting, ids[:1], ids[1:]) for ids in plain]
    scored = score_continuations(language_model.model, queries, _BATCH_TOKENS)
    num_tokens = sum(len(result.logprobs_H) for result in scored)
    return -sum(result.total for result in scored) / num_tokens if num_tokens else float("nan")
