"""Excerpts of sampled thoughts: the tokens that the learner replays.

Design: the last tokens of a thought, because they follow from everything before them, because most of them
were decoded with a cache, and because a sampled close token and a prediction are among them. All tokens of
an excerpt are of one policy version, as only the learner's current weights can be compared. Where the
sampler handed on log-probs of the target, that is an excerpt too. Thoughts that this version sampled from
their first token on come first; under ``rollout.keep_kv`` no others are used, as the rest of a thought may
then come from the cache of an older version. The price: the first tokens of long thoughts are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest

from forethought.types import Position, Rollout, Task, Thought

MAX_TOKENS = 32
"""About how many tokens are replayed at once: enough for a mean, and no noticeable work."""

MAX_TOKENS_PER_THOUGHT = 8
_MAX_THOUGHTS = 8


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Consecutive sampled tokens of one policy version, and everything before them in their row.

    ``behaviour_logprobs_L`` are the sampler's, at ``temperature``.

    Example:
        ``Excerpt(prefix_ids=(1, 5, 39), token_ids_L=(4, 40), behaviour_logprobs_L=(-0.7, -0.1), …)``
    """

    prefix_ids: tuple[int, ...]
    token_ids_L: tuple[int, ...]
    behaviour_logprobs_L: tuple[float, ...]
    temperature: float

    @property
    def row_ids(self) -> tuple[int, ...]:
        """Prefix and tokens."""
        return self.prefix_ids + self.token_ids_L


def excerpts_of(
    rollouts: Iterable[Rollout], version: int, *, whole_only: bool = False
) -> list[Excerpt]:
    """Excerpts sampled by ``version``, about ``MAX_TOKENS`` tokens of up to eight thoughts; may be empty.

    With ``whole_only``, only of thoughts without a token of another version.
    """
    found = (
        source for source in _sources(rollouts, version) if not (whole_only and source.is_mixed)
    )
    excerpts: list[Excerpt] = []
    num_tokens = 0
    for source in nsmallest(_MAX_THOUGHTS, found, key=lambda source: (source.is_mixed, source.g)):
        if num_tokens < MAX_TOKENS:
            found_here = source.excerpts()
            excerpts += found_here
            num_tokens += sum(len(excerpt.token_ids_L) for excerpt in found_here)
    return excerpts


@dataclass(frozen=True, slots=True)
class _Source:
    """Thought ``g`` of a group, and the range of its tokens to replay: the last of one version."""

    task: Task
    position: Position
    g: int
    thought: Thought
    tokens: range
    is_mixed: bool  # has tokens of other versions

    def excerpts(self) -> list[Excerpt]:
        """Of the thought, and of the target after it if the sampler scored that."""
        task, thought = self.task, self.thought
        first, end = self.tokens.start, self.tokens.stop
        sampled = Excerpt(
            task.prompting.thinking_prefix(self._context_ids) + thought.token_ids_L[:first],
            thought.token_ids_L[first:end],
            thought.behaviour_logprobs_L[first:end],
            task.sampling.temperature,
        )
        return [sampled, self._target()] if thought.target_logprobs_H else [sampled]

    def _target(self) -> Excerpt:
        thought = self.thought
        prefix_ids = self.task.prompting.target_prefix(
            self._context_ids, thought.thought_ids, thought.closed
        )
        return Excerpt(prefix_ids, self.position.target_ids_H, thought.target_logprobs_H, 1.0)

    @property
    def _context_ids(self) -> tuple[int, ...]:
        return self.task.document.token_ids_N[: self.position.index]


def _sources(rollouts: Iterable[Rollout], version: int) -> Iterator[_Source]:
    for rollout in rollouts:
        task = rollout.task
        for position, thoughts_G in zip(task.positions_K, rollout.thoughts_KG, strict=True):
            for g, thought in enumerate(thoughts_G):
                if tokens := _last_tokens(thought, version):
                    is_mixed = any(span.version != version for span in thought.version_spans)
                    yield _Source(task, position, g, thought, tokens, is_mixed)


def _last_tokens(thought: Thought, version: int) -> range:
    """The last consecutive tokens that ``version`` sampled; empty if it sampled none."""
    found, end = range(0), 0
    for span in thought.version_spans:
        start, end = end, end + span.num_tokens
        if span.version == version and span.num_tokens:
            found = range(max(start, end - MAX_TOKENS_PER_THOUGHT), end)
    return found
