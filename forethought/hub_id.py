"""Names of models and data sets on the Hugging Face hub, and how they are told from local paths.

Design: one rule for every place that takes a path. What exists on disk is a path; of the rest, ``name`` and
``owner/name`` are ids, optionally with ``@`` and a revision, unless they end like a file of text. The
price: a mistyped folder of that form is looked up on the hub before it is refused, which the message says.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_FORM = re.compile(rf"((?:{_NAME}/)?{_NAME})(?:@([^@\s]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (
    ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".md", ".git",
    ".gz", ".bz2", ".zst", ".xz", ".toml", ".safetensors", ".gguf",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository of the hub; ``revision`` is a branch, a tag or a commit, "" its main branch.

    Example:
        ``HubId.parse("openai/gsm8k@main") == HubId("openai/gsm8k", "main")``
    """

    name: str
    revision: str = ""

    @classmethod
    def parse(cls, path: str, revision: str = "") -> HubId | None:
        """The id that ``path`` is; None if it is a local path, as everything that exists is.

        A revision in the path takes precedence over ``revision``.
        """
        form = _FORM.fullmatch(path)
        if form is None or os.path.exists(path):
            return None
        name = form[1]
        if name.lower().endswith(_FILES) or "--" in name or ".." in name:
            return None
        return cls(name, form[2] or revision)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    @property
    def short_name(self) -> str:
        """The name without its owner."""
        return self.name.rpartition("/")[2]

    def __str__(self) -> str:
        """As a path may be written: ``openai/gsm8k@main``."""
        return f"{self.name}@{self.revision}" if self.revision else self.name
