"""Facts about a tokenizer that the service needs, computed once per tokenizer.

Design: markers and byte lengths never change for one tokenizer, and scanning a vocabulary takes a good part
of a second. They are cached together with their tokenizer; a new tokenizer gets new facts. The price is the
memory of one number per token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from forethought.compute.model import Markers, find_markers
from forethought.compute.prompting import prompting_of
from forethought.corpus.token_bytes import offset_bytes, vocabulary_bytes
from forethought.corpus.token_decoder import decoder_of
from forethought.errors import InvalidInput, NotReady, TooLarge
from forethought.objectives import Objective
from forethought.special_tokens import SpecialTokens, special_tokens_of
from forethought.types import Prompting
from services.reward.groups import GroupQuery, predictions_of, split_at_close

log = logging.getLogger("reward")


class BoundedTokenizer:
    """A tokenizer that refuses long texts: encoding takes some 200 bytes of memory per character.

    Example:
        ``BoundedTokenizer(tokenizer, 1 << 18)("a text", add_special_tokens=False)``
    """

    def __init__(self, tokenizer: Any, max_characters: int) -> None:
        self._tokenizer, self._max_characters = tokenizer, max_characters

    def __call__(self, text: str, **options: Any) -> Any:
        """The tokenizer's own encoding of a text.

        Raises:
            TooLarge: the text is too long.
        """
        if len(text) > self._max_characters:
            raise TooLarge(
                f"got a text of {len(text)} characters; expected at most {self._max_characters}; "
                "split it, send token ids, or raise reward.max_text_characters"
            )
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class TokenizerFacts:
    """A tokenizer, its think markers and the byte lengths of its tokens.

    ``bounded`` is the tokenizer for texts of requests, of at most ``max_text_characters``.

    Example:
        ``TokenizerFacts(tokenizer, "<think>", "</think>", 1 << 18).token_bytes("a word")``
    """

    def __init__(
        self, tokenizer: Any, think_open: str, think_close: str, max_text_characters: int
    ) -> None:
        self.tokenizer = tokenizer
        self.bounded = BoundedTokenizer(tokenizer, max_text_characters)
        self._think_open, self.think_close = think_open, think_close
        self._promptings: dict[int, Prompting] = {}

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """What the tokenizer puts around a text."""
        return special_tokens_of(self.tokenizer)

    @cached_property
    def markers(self) -> Markers:
        """The think markers.

        Raises:
            NotReady: the tokenizer lacks them, which is a fault of the served model, not of the request.
        """
        try:
            found = find_markers(self.tokenizer, self._think_open, self.think_close)
        except InvalidInput as error:
            raise NotReady(
                f"{error}; scoring thoughts needs these markers, while log-probs, matches and entropies "
                "work without"
            ) from error
        log.info("think markers: %s", found)
        return found

    def prompting(self, objective: Objective) -> Prompting:
        """The tokens that an objective puts around a thought.

        Raises:
            NotReady: the tokenizer lacks the think markers.
        """
        key = id(objective)  # objectives live as long as the service, so ids are not reused
        if key not in self._promptings:
            self._promptings[key] = prompting_of(objective, self.tokenizer, self.markers)
        return self._promptings[key]

    def graded(self, query: GroupQuery, objective: Objective) -> GroupQuery:
        """The query with what its objective grades: the tokens after a close marker are the prediction."""
        if not objective.prediction_tokens:
            return query
        decoder, close_ids = decoder_of(self.tokenizer), query.prompting.close_marker_ids
        thoughts_G = tuple(split_at_close(thought, close_ids) for thought in query.thoughts_G)
        return replace(
            query,
            thoughts_G=thoughts_G,
            predictions_G=predictions_of(thoughts_G, objective, decoder),
            truth=decoder.ground_truth(
                query.target_ids_H, (), without_end=objective.prediction_ends
            ),
            wants_predictions="prediction" in objective.models,
        )

    def token_bytes(self, text: str) -> Sequence[int]:
        """Byte lengths of a text's tokens; they sum to the text's length in UTF-8.

        Raises:
            InvalidInput: the tokenizer does not expose them.
        """
        num_bytes = len(text.encode())
        encoded = self.bounded(
            text,
            add_special_tokens=False,
            verbose=False,
            return_offsets_mapping=self.tokenizer.is_fast,
        )
        sizes = self._vocabulary_bytes
        found = [sizes[i] for i in encoded["input_ids"]] if sizes else []
        if sum(found) != num_bytes and "offset_mapping" in encoded:
            # For a tokenizer that normalises, or prepends a space, offsets are more accurate.
            found = offset_bytes(text, encoded["offset_mapping"])
        if sum(found) != num_bytes:
            raise InvalidInput(
                f"the served tokenizer accounts for {sum(found)} of the truth's {num_bytes} bytes; "
                "send token_bytes, the byte length of every token of the truth"
            )
        return found

    @cached_property
    def _vocabulary_bytes(self) -> tuple[int, ...] | None:
        return vocabulary_bytes(self.tokenizer)
