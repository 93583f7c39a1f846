"""The fields of a record: which of those present are read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from forethought.errors import InvalidInput

TOKEN_IDS_FIELD = "token_ids"
ENTROPIES_FIELD = "entropies"

Record = tuple[str, dict[str, Any]]
"""A document's id and its requested fields."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a record's fields; ``prompt`` "" means no prompt field.

    Example:
        ``Fields(text="text", marks="marks", prompt="question")``
    """

    text: str
    marks: str
    prompt: str = ""

    def wanted(self, present: Collection[str], where: str) -> list[str]:
        """The fields of ``present`` to read; text takes precedence over token ids.

        The ids may be another tokenizer's.

        Raises:
            InvalidInput: neither the text field nor ``token_ids`` is present.
        """
        content = next((name for name in (self.text, TOKEN_IDS_FIELD) if name in present), None)
        if content is None:
            raise InvalidInput(
                f"{where}: got the fields {sorted(present)}, expected {self.text!r} (or "
                f"{TOKEN_IDS_FIELD!r} if it is already tokenised); set the source's text_field"
            )
        annotations = [self.marks, self.prompt]
        if content == TOKEN_IDS_FIELD:  # a text's entropies would be another tokenizer's
            annotations.append(ENTROPIES_FIELD)
        return [content, *(name for name in annotations if name in present)]
