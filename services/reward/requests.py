"""A ``/v1/score`` request as typed structs, which msgspec decodes straight from JSON."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

TokenIds = tuple[Annotated[int, Meta(ge=0)], ...]


_AS_THEY_ARE = "Its token ids, taken as they are."


class ScoreItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A context, what follows it, and the thoughts to compare. Each text is tokenised apart."""

    id: Annotated[str | int | None, Meta(description="Given back with the answer.")] = None
    context: Annotated[str | None, Meta(description="What is known. Or give context_ids.")] = None
    context_ids: Annotated[TokenIds | None, Meta(description=_AS_THEY_ARE)] = None
    target: Annotated[str | None, Meta(description="What follows. Or give target_ids.")] = None
    target_ids: Annotated[TokenIds | None, Meta(description=_AS_THEY_ARE)] = None
    thoughts: Annotated[
        list[str | TokenIds],
        Meta(
            min_length=1,
            description="The group, as text or token ids; a missing close token is added for "
            "scoring.",
        ),
    ]


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Items to be scored by one objective."""

    objective: Annotated[str, Meta(description="One of GET /v1/models' objectives.")]
    items: Annotated[list[ScoreItem], Meta(min_length=1)]
