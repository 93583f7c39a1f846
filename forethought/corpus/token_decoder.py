"""What tokens say, as bytes: predictions, and the truth with its token boundaries.

Design: everything is spelled from token ids by the tokenizer's vocabulary, ids as sampled and as the corpus
stores them; nothing is decoded or tokenised. Boundaries are the stored lengths where the corpus has them.
The price: a vocabulary that does not say what stands between two tokens (WordLevel, WordPiece) is spelled
by its tokens' names, and the boundaries are then those of the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from forethought.corpus.token_bytes import decoded_vocabulary, token_names
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
        """Tokens with their bytes; an id without a token stands for none."""
        pieces = self._pieces
        return TokenBytes(
            tuple(token_ids), tuple(pieces[i] if i < len(pieces) else b"" for i in token_ids)
        )

    def decode_answer(self, token_ids: Sequence[int]) -> TokenBytes:
        """As :meth:`spelled`, without a special token at the end: what says that all is said."""
        ended = bool(token_ids) and token_ids[-1] in self._special_ids
        return self.decode(token_ids[:-1] if ended else token_ids)

    def ground_truth(self, token_ids: Sequence[int], token_bytes: Sequence[int]) -> GroundTruth:
        """The text of stored tokens; ``token_bytes`` are their lengths as stored, or empty."""
        spelling = self.decode(token_ids)
        ends = tuple(accumulate(token_bytes)) if self._is_exact and token_bytes else spelling.ends_L
        return GroundTruth(spelling.text, ends)


@lru_cache(maxsize=2)
def decoder_of(tokenizer: Any) -> TokenDecoder:
    """The speller of a tokenizer, which takes a good part of a second to make."""
    return TokenDecoder(tokenizer)
