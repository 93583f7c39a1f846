"""A ``/v1/score`` request as typed structs, which msgspec decodes straight from JSON."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

TokenIds = tuple[Annotated[int, Meta(ge=0)], ...]


_IDS = "Its token ids, used as is."
_CONTEXT_IDS = f"{_IDS} With or without the model's BOS, which precedes them once."


class ScoreItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A context, the target after it, and the thoughts to compare. Texts are tokenised separately."""

    id: Annotated[str | int | None, Meta(description="Returned with the result.")] = None
    context: Annotated[
        str | None, Meta(description="The conditioning text. Or give context_ids.")
    ] = None
    context_ids: Annotated[TokenIds | None, Meta(description=_CONTEXT_IDS)] = None
    target: Annotated[
        str | None, Meta(description="The text that follows it. Or give target_ids.")
    ] = None
    target_ids: Annotated[TokenIds | None, Meta(description=_IDS)] = None
    thoughts: Annotated[
        list[str | TokenIds],
        Meta(
            min_length=1,
            description="The group, as text or token ids; a missing think-close token is "
            "appended for scoring.",
        ),
    ]


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Items to score with one objective."""

    objective: Annotated[str, Meta(description="One of the objectives that GET /v1/models lists.")]
    items: Annotated[list[ScoreItem], Meta(min_length=1)]
