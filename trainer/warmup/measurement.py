"""What a model's own thoughts are worth to it: the figure by which a warm-up begins and ends.

Design: measured by the learner on windows that a warm-up sets aside, with the run's own positions and
sampling, the model against itself without a thought. Thoughts are cut at ``_MAX_TOKENS``, so that a base
model that never ends one costs no more; the price is that a budget beyond it is not tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import fmean, stdev
from typing import Self

from forethought.compute.answers import Query, answer_queries
from forethought.compute.sampling import derive_seed
from forethought.corpus.mixture import Corpus
from forethought.errors import InvalidInput
from forethought.objectives import Objective
from forethought.types import Document, Sampling
from trainer.assembly import Assembly

_MAX_TOKENS = 64
_THOUGHTS_PER_POSITION = 4


@dataclass(frozen=True, slots=True)
class Worth:
    """Means over positions; nats per target. ``gain_error`` is the standard error of the gain.

    Example:
        ``Worth(information_gain=-5.9, gain_error=0.6, closed_share=0.0, thought_tokens=32.0, …)``
    """

    information_gain: float
    gain_error: float
    closed_share: float
    thought_tokens: float
    no_think_nll: float

    def __str__(self) -> str:
        gain = f"{self.information_gain:+.2f} ± {self.gain_error:.2f} nats"
        return (
            f"thoughts change log p(target) by {gain}, {self.closed_share:.0%} close by themselves, "
            f"{self.thought_tokens:.1f} tokens"
        )

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Self:
        """The inverse of :meth:`values`."""
        return cls(
            information_gain=values["information_gain"],
            gain_error=values["information_gain_error"],
            closed_share=values["closed_share"],
            thought_tokens=values["thought_tokens_mean"],
            no_think_nll=values["no_think_nll"],
        )

    def values(self) -> dict[str, float]:
        """Under the names of the metrics log."""
        return {
            "information_gain": self.information_gain,
            "information_gain_error": self.gain_error,
            "closed_share": self.closed_share,
            "thought_tokens_mean": self.thought_tokens,
            "no_think_nll": self.no_think_nll,
        }

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def set_aside(corpus: Corpus, num_documents: int) -> list[Document]:
    """The first windows of a corpus at its beginning; its first pass does not draw them again."""
    return corpus.take(num_documents)


def worth_of_thoughts(
    parts: Assembly, objective: Objective, documents: Sequence[Document]
) -> Worth:
    """Sample and score thoughts at the objective's positions of ``documents``.

    Raises:
        InvalidInput: there is no position, the model cannot be sampled here, or a log-prob is not finite.
    """
    assert parts.markers is not None
    assert parts.prompting is not None
    seed, section = parts.settings.run.seed, parts.settings.sampling
    queries = [
        query
        for i, document in enumerate(documents)
        for query in _query(document, objective, Random(derive_seed(seed, i)))
    ]
    if not queries:
        raise InvalidInput(
            f"none of {len(documents)} windows has a position for the objective; expected at least one"
        )
    sampling = Sampling(
        group_size=_THOUGHTS_PER_POSITION,
        max_thought_tokens=min(section.max_thought_tokens, _MAX_TOKENS),
        temperature=section.temperature,
        stop_ids=parts.markers.stop_ids,
        stop_sequences=parts.markers.stop_sequences,
    )
    answers = answer_queries(parts.learner.language_model, queries, parts.prompting, sampling, seed)
    gains = [answer.information_gain for answer in answers]
    thoughts = [thought for answer in answers for thought in answer.thoughts_G]
    return Worth(
        information_gain=fmean(gains),
        gain_error=stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0,
        closed_share=fmean(thought.stopped for thought in thoughts),
        thought_tokens=fmean(len(thought.token_ids_L) for thought in thoughts),
        no_think_nll=fmean(answer.no_think_nll for answer in answers),
    )


def _query(document: Document, objective: Objective, rng: Random) -> list[Query]:
    """One of the objective's positions in a document, so that what is measured is independent."""
    positions = objective.positions(document, rng)
    return [Query(document, rng.choice(positions))] if positions else []
