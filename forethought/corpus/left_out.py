"""Documents of which there is no window, and why.

Design: the counts are kept beside the cached windows, so that a start that loads these says the same as the
one that cut them. The price: they are counts, without the documents' names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from forethought.run.files import read_object, write_whole


@dataclass(slots=True)
class LeftOut:
    """How many documents have no window: too short, or with a prompt and too long.

    Example:
        ``LeftOut(num_short=3, num_long=1)``
    """

    num_short: int = 0
    num_long: int = 0

    def reasons(self, window_tokens: int, min_window_tokens: int) -> Iterator[str]:
        """A sentence for each reason that any document was left out for."""
        if self.num_short:
            yield (
                f"{self.num_short} shorter than corpus.min_window_tokens={min_window_tokens} tokens were "
                "left out; lower it or add text"
            )
        if self.num_long:
            yield (
                f"{self.num_long} longer than corpus.window_tokens={window_tokens} tokens were left out, "
                "because a question and its answer are never cut; raise it to use them"
            )

    def save(self, file: Path) -> None:
        """Write the counts to a file."""
        write_whole(file, json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> LeftOut:
        """The counts that :meth:`save` wrote."""
        return cls(**read_object(file))
