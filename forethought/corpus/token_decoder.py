"""Tokens decoded to bytes: predictions, and the ground truth with its token boundaries.

Design: ids as sampled and as stored in the corpus are mapped to bytes by the tokenizer's vocabulary;
nothing goes through text or is tokenised again. Boundaries are the stored lengths if the corpus has them.
The price: for a vocabulary that does not define the text between tokens (WordLevel, WordPiece) the tokens'
names are used, and the boundaries are then those of the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from forethought.corpus.token_bytes import decoded_vocabulary, token_names
from forethought.objectives import Objective
from forethought.objectives.parts.grading import GroundTruth, TokenBytes


class TokenDecoder:
    """The bytes of a tokenizer's tokens.

    Example:
        ``TokenDecoder(tokenizer).decode((262, 1097)).text == b" the end"``
    """

    def __init__(self, tokenizer: Any) -> None:
        pieces = decoded_vocabulary(tokenizer)
        self._is_exact = pieces is not None
        self._pieces = pieces or token_names(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids)

    def decode(self, token_ids: Sequence[int]) -> TokenBytes:
        """Tokens with their bytes; an id without a token has no bytes."""
        pieces = self._pieces
        return TokenBytes(
            tuple(token_ids), tuple(pieces[i] if i < len(pieces) else b"" for i in token_ids)
        )

    def unpredictable_ids(self, objective: Objective) -> frozenset[int]:
        """The tokens that no answer can predict."""
        ids = range(len(self._pieces))
        return frozenset(i for i in ids if not objective.can_predict(self.decode((i,))))

    def decode_answer(self, token_ids: Sequence[int]) -> TokenBytes:
        """As :meth:`decode`, without a final special token (end of text)."""
        return self.decode(self._without_end(token_ids))

    def ground_truth(
        self, token_ids: Sequence[int], token_bytes: Sequence[int], *, without_end: bool = False
    ) -> GroundTruth:
        """The text of stored tokens; ``token_bytes`` are their stored byte lengths, or empty.

        ``without_end`` leaves out a final special token, as :meth:`decode_answer` does.
        """
        if without_end:
            token_ids = self._without_end(token_ids)
            token_bytes = token_bytes[: len(token_ids)]
        decoded = self.decode(token_ids)
        ends = tuple(accumulate(token_bytes)) if self._is_exact and token_bytes else decoded.ends_L
        return GroundTruth(decoded.text, ends)

    def _without_end(self, token_ids: Sequence[int]) -> Sequence[int]:
        ended = bool(token_ids) and token_ids[-1] in self._special_ids
        return token_ids[:-1] if ended else token_ids


@lru_cache(maxsize=2)
def decoder_of(tokenizer: Any) -> TokenDecoder:
    """The cached decoder of a tokenizer, which takes a good part of a second to build."""
    return TokenDecoder(tokenizer)
