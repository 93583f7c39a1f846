"""The fields of a record: which of those present are read, and the text that they make."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.config.sections import TextSection
from forethought.config.text_template import columns_of, filled
from forethought.errors import InvalidInput

TOKEN_IDS_FIELD = "token_ids"
ENTROPIES_FIELD = "entropies"

Record = tuple[str, dict[str, Any]]
"""A document's id and its requested fields."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a record's fields; ``prompt`` "" means no prompt field.

    With a ``template`` the text is made from its columns. What matches ``strip``, a regular expression, is
    removed from the text.

    Example:
        ``Fields(text="text", marks="marks", prompt="question")``
    """

    text: str
    marks: str
    prompt: str = ""
    template: str = ""
    strip: str = ""

    @classmethod
    def of(cls, section: TextSection) -> Fields:
        """The fields of a source."""
        return cls(
            section.text_field,
            section.marks_field,
            section.prompt_field,
            section.template,
            section.strip_pattern,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that make the text."""
        return columns_of(self.template) if self.template else (self.text,)

    @property
    def missing(self) -> str:
        """What a file without such records lacks, for messages."""
        return " and ".join(map(repr, self.columns))

    def wanted(self, present: Collection[str], where: str) -> list[str]:
        """The fields of ``present`` to read; text takes precedence over token ids.

        The ids may be another tokenizer's.

        Raises:
            InvalidInput: neither the text field nor ``token_ids`` is present, or a column of the template
                is not.
        """
        content = list(self.columns if self.template else self._content(present, where))
        if absent := [name for name in content if name not in present]:
            raise InvalidInput(
                f"{where}: got the columns {sorted(present)}, expected {', '.join(map(repr, absent))} too, "
                f"for the template {self.template!r}; correct the source's template"
            )
        annotations = [self.marks, self.prompt]
        if content == [TOKEN_IDS_FIELD]:  # a text's entropies would be another tokenizer's
            annotations.append(ENTROPIES_FIELD)
        return list(dict.fromkeys([*content, *(n for n in annotations if n in present)]))

    def _content(self, present: Collection[str], where: str) -> tuple[str, ...]:
        for name in (self.text, TOKEN_IDS_FIELD):
            if name in present:
                return (name,)
        raise InvalidInput(
            f"{where}: got the fields {sorted(present)}, expected {self.text!r} (or {TOKEN_IDS_FIELD!r} if "
            "it is already tokenised); set the source's text_field, or a template of several"
        )

    def content(self, record: Mapping[str, Any], document_id: str) -> Any:
        """What a record holds: its text, or token ids, or None if a column of it is empty.

        Raises:
            InvalidInput: a value of the template is neither text nor a number.
        """
        if not self.template:
            return record[self.text if self.text in record else TOKEN_IDS_FIELD]
        values = {name: record[name] for name in self.columns}
        for name, value in values.items():
            if value is not None and not isinstance(value, str | int | float):
                raise InvalidInput(
                    f"{document_id}: got {name}={value!r:.80} ({type(value).__name__}), expected text or a "
                    f"number for the template {self.template!r}; name another column"
                )
        return None if None in values.values() else filled(self.template, values)

    def stripped(self, text: str, marks: Sequence[int]) -> tuple[str, list[int]]:
        """A text without what the pattern matches, and the marks (offsets into it) that remain."""
        spans = [match.span() for match in re.finditer(self.strip, text)] if self.strip else []
        kept, start = [], 0
        for first, end in spans:
            kept.append(text[start:first])
            start = end
        outside = [mark for mark in marks if not any(a <= mark < b for a, b in spans)]
        moved = [mark - sum(b - a for a, b in spans if b <= mark) for mark in outside]
        return "".join([*kept, text[start:]]), moved
