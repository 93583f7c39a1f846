"""What a warm-up trains on: windows of the corpus with thoughts that the model samples itself.

    head | context | bridge | thought | close | text        and the window without a thought

Design: lengths are drawn before sampling, and neither close, open nor end-of-text can be sampled before
one is reached; only a marker of several tokens may come up by itself. A thought's positions, length and
seeds depend only on the run's seed and the number of windows drawn before it, so that a resumed run draws
the same. The price: thoughts of one batch are by one version, its newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from forethought.compute.decode_batches import sample_within
from forethought.compute.sampling import Sample, SampleRequest, derive_seed
from forethought.objectives.warmup import WarmupConfig
from forethought.types import Document, Position
from trainer.assembly import Assembly
from trainer.batch.thought_tree import Branch, ThoughtTree, trees_of_documents

_BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class _Place:
    """Where to think in a window, and for how many tokens.

    Example:
        ``_Place(document, Position(10, (42,)), num_tokens=7, text_tokens=24)``
    """

    document: Document
    position: Position
    num_tokens: int
    text_tokens: int  # to be learned after the thought

    @property
    def context_ids(self) -> tuple[int, ...]:
        return self.document.token_ids_N[: self.position.index]

    @property
    def rest_ids(self) -> tuple[int, ...]:
        start = self.position.index
        return self.document.token_ids_N[start : start + self.text_tokens]


class SelfSampledThoughts:
    """The corpus of a warm-up (:mod:`forethought.objectives.warmup`) as thought trees."""

    def __init__(self, parts: Assembly) -> None:
        assert parts.markers is not None
        assert parts.prompting is not None
        self._parts, self._config = parts, parts.objective.config
        self._prompting = parts.prompting
        self._num_close_tokens = len(parts.markers.close_ids)
        markers = (parts.markers.open_ids, parts.markers.close_ids)
        single = (ids[0] for ids in markers if len(ids) == 1)
        self._unsampled_ids = (*single, *parts.end_ids)

    def take(self, num_documents: int) -> list[ThoughtTree]:
        """The next windows, with thoughts by the model as it is, weighted to a mean over all tokens."""
        first = self._parts.corpus.cursor.num_drawn
        documents = self._parts.corpus.take(num_documents)
        places = [
            place for i, one in enumerate(documents) for place in self._places(one, first + i)
        ]
        thinking = [
            self._tree(place, thoughts_G)
            for place, thoughts_G in zip(places, self._sampled(places, first), strict=True)
        ]
        bos_ids = self._prompting.bos_ids + self._prompting.no_think_head_ids
        plain = trees_of_documents(documents, bos_ids)
        return _weighted(thinking) + [self._plain(tree) for tree in plain]

    def _plain(self, tree: ThoughtTree) -> ThoughtTree:
        weight = self._config.plain_weight
        return replace(tree, nll_weights_N=tuple(weight * w for w in tree.nll_weights_N))

    def _places(self, document: Document, number: int) -> list[_Place]:
        settings = self._parts.settings
        rng = Random(derive_seed(settings.run.seed, number))
        shortest, longest = self._config.lengths(settings.sampling.max_thought_tokens)
        positions = self._parts.objective.positions(document, rng)
        return [
            _Place(document, one, rng.randint(shortest, longest), self._config.text_tokens)
            for one in positions
        ]

    def _sampled(self, places: Sequence[_Place], first: int) -> list[list[Sample]]:
        config: WarmupConfig = self._config
        seed = self._parts.settings.run.seed
        requests = [
            SampleRequest(
                prefix_ids=self._prompting.thinking_prefix(place.context_ids),
                seeds_G=tuple(
                    derive_seed(seed, first, k, g) for g in range(config.thoughts_per_position)
                ),
                max_tokens=place.num_tokens,
                temperature=self._parts.settings.sampling.temperature,
                stop_ids=self._unsampled_ids,
                min_tokens=place.num_tokens,
            )
            for k, place in enumerate(places)
        ]
        return sample_within(self._parts.learner.model, requests, _BATCH_TOKENS)

    def _tree(self, place: _Place, thoughts_G: Sequence[Sample]) -> ThoughtTree:
        head_ids = self._prompting.bos_ids + self._prompting.head_ids
        branches = tuple(self._branch(place, thought.token_ids_L) for thought in thoughts_G)
        return ThoughtTree(head_ids, place.document.token_ids_N, (), branches)

    def _branch(self, place: _Place, thought_ids: tuple[int, ...]) -> Branch:
        bridge_ids, close_ids = self._prompting.bridge_ids, self._prompting.close_ids
        token_ids_T = bridge_ids + thought_ids + close_ids + place.rest_ids
        num_own = len(thought_ids) + self._num_close_tokens
        weights = (0.0,) * len(bridge_ids) + (self._config.thought_weight,) * num_own
        weights += (0.0,) * (len(close_ids) - self._num_close_tokens)
        weights += (self._config.target_weight,)
        weights += (1.0,) * (len(place.rest_ids) - 1)
        nothing = (0.0,) * len(token_ids_T)
        return Branch(place.position.index, token_ids_T, nothing, nothing, nothing, 1.0, weights)


def _weighted(trees: Sequence[ThoughtTree]) -> list[ThoughtTree]:
    """The trees with next-token weights that sum to 1."""
    total = sum(sum(branch.nll_weights_T) for tree in trees for branch in tree.branches) or 1.0
    return [
        ThoughtTree(
            tree.head_ids, tree.trunk_ids_N, (), tuple(_scaled(b, total) for b in tree.branches)
        )
        for tree in trees
    ]


def _scaled(branch: Branch, total: float) -> Branch:
    return replace(branch, nll_weights_T=tuple(weight / total for weight in branch.nll_weights_T))
