"""Splits and subsets, by a README or by the names of files."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from forethought.errors import InvalidInput
from forethought.hub import DatasetCard, Selection
from forethought.hub.splits import splits_of

GSM8K = [
    "main/test-00000-of-00001.parquet",
    "main/train-00000-of-00001.parquet",
    "socratic/test-00000-of-00001.parquet",
    "socratic/train-00000-of-00001.parquet",
]
CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*, more/test-*]
- config_name: socratic
  data_files: socratic/*
---
text
"""


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("data/train-00000-of-00001.parquet", {"train"}),
        ("main/train/0000.parquet", {"train"}),
        ("training.jsonl", {"train"}),
        ("en/dev.csv", {"validation"}),
        ("test/part_1.jsonl", {"test"}),
        ("test/train.jsonl", {"train"}),  # the file's own name first
        ("contest/latest.jsonl", set()),
        ("restrained.txt", set()),
        ("Train.JSONL", {"train"}),
    ],
)
def test_a_files_name_says_its_split(name: str, splits: set[str]) -> None:
    assert splits_of(name) == splits


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(), GSM8K),
        (Selection(subset="main"), GSM8K[:2]),
        (Selection("train", "main"), [GSM8K[1]]),
        (Selection("test"), [GSM8K[0], GSM8K[2]]),
        (Selection(prefers_train=True), [GSM8K[1], GSM8K[3]]),
        (Selection(subset="socratic", prefers_train=True), [GSM8K[3]]),
    ],
)
def test_names_select(selection: Selection, chosen: list[str]) -> None:
    assert selection.chosen(GSM8K) == chosen


@pytest.mark.parametrize("word", ["dev", "val", "valid", "validation"])
def test_a_split_is_found_by_any_of_its_words(word: str) -> None:
    assert Selection(word).chosen(["a/train.csv", "a/dev.csv"]) == ["a/dev.csv"]


def test_a_split_of_another_name_is_found() -> None:
    names = ["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"]
    assert Selection("train_sft").chosen(names) == names[:1]


def test_files_that_say_no_split_are_training_text() -> None:
    names = ["a.jsonl", "b.jsonl"]
    assert Selection("train").chosen(names) == names
    assert Selection(prefers_train=True).chosen(names) == names
    with pytest.raises(
        InvalidInput, match=r"no file is of split 'test'; got 2 files .* no split \(2\)"
    ):
        Selection("test").chosen(names)


def test_a_test_split_is_never_taken_for_the_training_split() -> None:
    with pytest.raises(InvalidInput, match=r"split 'train' and subset 'main'.*test \(1\)"):
        Selection("train", "main").chosen(GSM8K[:1])


def test_a_readme_decides(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    card = DatasetCard.read(tmp_path)
    names = [*GSM8K, "more/test-1.parquet"]
    assert Selection("test", "main").chosen(names, card) == [GSM8K[0], "more/test-1.parquet"]
    assert Selection("train", "socratic").chosen(names, card) == GSM8K[2:]
    assert Selection(subset="main").chosen(names, card) == [*GSM8K[:2], "more/test-1.parquet"]
    assert Selection("train", "main").download_patterns(card) == ["main/train-*"]
    with pytest.raises(InvalidInput, match="the subsets main, socratic; expected one of them"):
        Selection("train").chosen(names, card)


@pytest.mark.parametrize(
    "text",
    [
        "# no front matter",
        "---\nconfigs: 7\n---\n",
        "---\n[: \n---\n",
        "---\nconfigs:\n- a\n---\n",
    ],
)
def test_a_readme_that_declares_nothing_leaves_it_to_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert DatasetCard.read(tmp_path) == DatasetCard()


def test_patterns_for_download_match_what_is_chosen() -> None:
    for selection in (Selection("train", "main"), Selection("dev"), Selection("test")):
        names = [*GSM8K, "main/dev.csv", "data/main/test.jsonl"]
        patterns = selection.download_patterns(DatasetCard())
        matched = {name for name in names if any(fnmatch(name, p) for p in patterns)}
        assert matched >= set(selection.chosen(names)), selection
