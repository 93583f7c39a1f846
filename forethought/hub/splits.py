"""Which files of a data set belong to a split and to a subset of it.

Design: a README that declares its subsets and splits (``configs`` in its front matter, as on the hub) is
followed. Without one, names decide, as on the hub: ``data/train-00000-of-00001.parquet``,
``main/train-….parquet``, ``train.jsonl``, ``dev.csv``; the file's own name before its folders'. Files of
which no name says a split are training text. The price: a file whose name holds another split's word by
accident (``test-of-time/part-1.parquet``) is taken for one of it, which a README prevents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from forethought.errors import InvalidInput

README = "README.md"
TRAIN, DEFAULT = "train", "default"
_WORDS = {
    TRAIN: (TRAIN, "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

Splits = Mapping[str, tuple[str, ...]]
"""Patterns of file names by split."""


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """What a README declares: the splits of every subset; empty if it declares nothing.

    Example:
        ``DatasetCard({"main": {"train": ("main/train-*",), "test": ("main/test-*",)}})``
    """

    subsets: Mapping[str, Splits] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> DatasetCard:
        """The card of a data set's folder; an unreadable one declares nothing."""
        if not (folder / README).is_file():
            return cls()
        try:
            from huggingface_hub import metadata_load

            declared = (metadata_load(folder / README) or {}).get("configs") or []
            subsets = {str(entry["config_name"]): _splits(entry) for entry in declared}
        except Exception:  # YAML by strangers, in any form
            return cls()
        return cls({name: splits for name, splits in subsets.items() if splits})


def _splits(entry: Mapping[str, Any]) -> Splits:
    files = entry.get("data_files") or ()
    if isinstance(files, str) or all(isinstance(file, str) for file in files):
        return {TRAIN: _patterns(files)} if files else {}
    return {str(file["split"]): _patterns(file["path"]) for file in files}


def _patterns(paths: str | Sequence[str]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)


NO_CARD = DatasetCard()


@dataclass(frozen=True, slots=True)
class Selection:
    """The split and the subset to read; "" is every file.

    ``prefers_train``: without a split, the training split if there is one, as of a hub's data set, whose
    test questions must not be trained on by oversight.

    Example:
        ``Selection("test", "main").chosen(["main/train.jsonl", "main/test.jsonl"]) == ["main/test.jsonl"]``
    """

    split: str = ""
    subset: str = ""
    prefers_train: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether it selects every file of any folder."""
        return not (self.split or self.subset or self.prefers_train)

    @property
    def _wanted(self) -> str:
        """The split that is read if there is one; "" is every file."""
        return self.split or (TRAIN if self.prefers_train else "")

    def chosen(self, names: Sequence[str], card: DatasetCard = NO_CARD) -> list[str]:
        """The selected ones of a data set's files, in their order.

        Raises:
            InvalidInput: it has no such split or subset, or several subsets and none is named.
        """
        if self.is_everything:
            return list(names)
        patterns = self._declared(card)
        found = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
        return found or self._named(names, card)

    def download_patterns(self, card: DatasetCard) -> list[str]:
        """Patterns that match what :meth:`chosen` selects of a repository, and perhaps more.

        Raises:
            InvalidInput: as :meth:`chosen`.
        """
        if patterns := self._declared(card):
            return list(patterns)
        words = [f"*{word}*" for word in _synonyms(self._wanted)]
        if not self.subset:
            return words
        return [p for word in words for p in (f"*{self.subset}{word}", f"{word}{self.subset}*")]

    def _declared(self, card: DatasetCard) -> tuple[str, ...]:
        """The card's patterns for the split; empty if it declares none."""
        splits = card.subsets.get(self._subset(card), {})
        for name in (self._wanted, *_synonyms(self._wanted)):
            if name in splits:
                return splits[name]
        return () if self.split else tuple(p for patterns in splits.values() for p in patterns)

    def _subset(self, card: DatasetCard) -> str:
        if self.subset or len(card.subsets) < 2 or DEFAULT in card.subsets:
            return self.subset or (
                DEFAULT if DEFAULT in card.subsets else next(iter(card.subsets), "")
            )
        raise InvalidInput(
            f"the data set has the subsets {', '.join(sorted(card.subsets))}; expected one of them: set "
            "the source's subset"
        )

    def _named(self, names: Sequence[str], card: DatasetCard) -> list[str]:
        """The files that are the selected ones by their names."""
        of_subset = [name for name in names if self._is_of_subset(name)]
        split = self._wanted
        found = [name for name in of_subset if not split or split in splits_of(name, split)]
        no_splits = not any(splits_of(name) for name in of_subset)
        if not found and (not self.split or (self.split == TRAIN and no_splits)):
            found = of_subset
        if not found and names:
            raise InvalidInput(self._refusal(names, card))
        return found

    def _is_of_subset(self, name: str) -> bool:
        if not self.subset or self.subset == DEFAULT:
            return True
        path = PurePosixPath(name)
        return self.subset in path.parent.parts or _says(path.name, self.subset)

    def _refusal(self, names: Sequence[str], card: DatasetCard) -> str:
        counts = Counter(split for name in names for split in splits_of(name) or ("no split",))
        found = ", ".join(f"{split} ({count})" for split, count in sorted(counts.items()))
        declared = f" and the subsets {', '.join(sorted(card.subsets))}" if card.subsets else ""
        wanted = " and ".join(
            f"{key} {value!r}"
            for key, value in (("split", self.split), ("subset", self.subset))
            if value
        )
        return (
            f"no file is of {wanted}; got {len(names)} files such as {names[0]!r}, by their names of "
            f"{found}{declared}; expected one of these: correct the source's split or subset"
        )


def splits_of(name: str, also: str = "") -> set[str]:
    """The splits that a file's name says, else those of its nearest folder that says one.

    ``also`` is the name of a further split (``train_sft``). Names are canonical: ``dev`` is ``validation``,
    and what it was asked for by.
    """
    for part in reversed(PurePosixPath(name).parts):
        if found := set(_splits_said(part, also)):
            return found
    return set()


def _splits_said(part: str, also: str) -> Iterator[str]:
    for split, words in _WORDS.items():
        if any(_says(part, word) for word in words):
            yield split
            if also in words:
                yield also
    if also and _says(part, also):
        yield also


def _says(text: str, word: str) -> bool:
    """Whether a word is in a file's name, between separators."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", text, re.I) is not None


def _synonyms(split: str) -> tuple[str, ...]:
    return next((words for words in _WORDS.values() if split in words), (split,))
