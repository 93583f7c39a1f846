"""The text of a record from its columns: templates, what is stripped, splits; local files and the hub's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.sources import open_source
from forethought.errors import InvalidInput
from tests.hub_cache import DATASET, FIRST, HubCache

ROWS = [
    {"question": "2 + 3?", "answer": "It is <<2+3=5>>5.", "level": 1},
    {"question": "4 + 4?", "answer": "<<4+4=8>>", "level": 2.5},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEMPLATE = "{question}\n{answer}"
CALCULATOR = "<<[^>]*>>"


def rows(path: Path | str, cache: Path, **keys: Any) -> list[dict[str, Any]]:
    return list(open_source(SourceSection(path=str(path), **keys), cache))


def texts(path: Path | str, cache: Path, **keys: Any) -> list[str]:
    return [row["text"] for row in rows(path, cache, **keys)]


def write(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "books" / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith("parquet"):
        Dataset.from_list(ROWS).to_parquet(path)
    elif name.endswith("csv"):
        Dataset.from_list(ROWS).to_csv(path)
    elif name.endswith("saved"):
        Dataset.from_list(ROWS).save_to_disk(path)
    else:
        path.write_text(json.dumps(ROWS) if name.endswith(".json") else LINES)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv", "saved"])
def test_a_template_makes_the_text_whatever_the_format(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    found = texts(path, tmp_path / "cache", template=TEMPLATE, strip_pattern=CALCULATOR)
    assert found == ["2 + 3?\nIt is 5.", "4 + 4?\n"]


def test_numbers_and_braces_are_written_out(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl")
    found = texts(path, tmp_path / "cache", template="{{level}} {level}: {question} {level}")
    assert found == ["{level} 1: 2 + 3? 1", "{level} 2.5: 4 + 4? 2.5"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "saved"])
def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    said = r"got the columns \['answer', 'level', 'question'\], expected 'qestion' too"
    with pytest.raises(InvalidInput, match=said):
        texts(path, tmp_path / "cache", template="{qestion}\n{answer}")


def test_a_record_without_a_value_is_empty_and_one_of_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a", "answer": null}\n{"question": "b", "answer": "c"}\n')
    assert texts(path, tmp_path / "cache", template=TEMPLATE) == ["b\nc"]
    path.write_text('{"question": "a", "answer": ["b"]}\n')
    with pytest.raises(
        InvalidInput, match=r"a.jsonl#0: got answer=\['b'\] \(list\), expected text"
    ):
        texts(path, tmp_path / "cache", template=TEMPLATE)


def test_a_document_of_which_all_is_stripped_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl")
    assert texts(path, tmp_path / "cache", text_field="answer", strip_pattern=CALCULATOR) == [
        "It is 5."
    ]


def test_marks_move_with_the_text_and_those_in_what_is_stripped_go(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "ab<<c>>d<<>>e", "marks": [1, 4, 7, 12]}) + "\n")
    (row,) = rows(path, tmp_path / "cache", strip_pattern=CALCULATOR)
    assert (row["text"], row["marks"]) == ("abde", [1, 2, 3])


def test_a_prompt_beside_a_template_is_not_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet")
    keys = {"prompt_field": "question", "template": "\n{answer}", "strip_pattern": CALCULATOR}
    (row,) = rows(path, tmp_path / "cache", **keys)
    assert row["text"] == "2 + 3?\nIt is 5."
    assert row["prompt_chars"] == len("2 + 3?")


def test_text_that_has_no_columns_is_left_out_of_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "a.jsonl")
    (path.parent / "notes.txt").write_text("notes")
    assert len(texts(path.parent, tmp_path / "cache", template=TEMPLATE)) == 2
    assert "plain text without the columns 'question' and 'answer' (notes.txt)" in caplog.text
    with pytest.raises(InvalidInput, match="plain text, which has no columns"):
        texts(path.parent / "notes.txt", tmp_path / "cache", template=TEMPLATE)


def test_token_ids_cannot_be_stripped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"token_ids": [1, 2, 3]}\n')
    with pytest.raises(InvalidInput, match="'token_ids' together with a strip_pattern"):
        texts(path, tmp_path / "cache", strip_pattern="a")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"template": "no column"}, "it names no column"),
        ({"template": "{}"}, "a brace holds something else"),
        ({"template": "{a!r}"}, "a brace holds something else"),
        ({"template": "{a:>9}"}, "a brace holds something else"),
        ({"template": "{a"}, "expected '}'"),
        ({"template": "{a}", "text_field": "b"}, "are both given"),
        ({"strip_pattern": "(a"}, "is no regular expression: missing \\)"),
    ],
)
def test_a_mistake_is_found_when_the_configuration_is_read(keys: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SourceSection(path="books", **keys)
    with pytest.raises(ValidationError, match=said):
        CorpusSection(path="books", **keys)


def test_a_column_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a.b c[0]": "text"}\n')
    assert texts(tmp_path / "a.jsonl", tmp_path / "cache", template="{a.b c[0]}") == ["text"]


def test_a_split_of_a_local_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text(json.dumps({"text": name}) + "\n")
    cache = tmp_path / "cache"
    assert texts(tmp_path / "a", cache, split="test") == ["test-00000-of-00001.jsonl"]
    assert len(texts(tmp_path / "a", cache)) == 2  # everything, as of any folder
    with pytest.raises(InvalidInput, match=r"split 'dev'; got 2 files .*test \(1\), train \(1\)"):
        texts(tmp_path / "a", cache, split="dev")


def test_a_split_of_a_saved_dataset(tmp_path: Path) -> None:
    splits = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "held")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved", tmp_path / "cache", split="held") == ["held"]


def test_a_data_set_of_the_hub_is_read_by_subset_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = HubCache(tmp_path / "home")
    cache.use(monkeypatch)
    files = {
        f"{subset}/{split}-00000-of-00001.parquet": write(tmp_path, f"{split}.parquet").read_bytes()
        for subset in ("main", "other")
        for split in ("train", "test")
    }
    cache.add("dataset", DATASET, files | {"more/train.jsonl": LINES.encode(), "README.md": b"# a"})
    found = rows(DATASET, tmp_path / "cache", subset="main", template="{question}")
    assert [row["id"] for row in found] == [
        f"main/train-00000-of-00001.parquet#{i}" for i in (0, 1)
    ]
    assert "of another split or subset (" in caplog.text
    caplog.clear()
    found = rows(f"{DATASET}@{FIRST}", tmp_path / "cache", split="train", template="{question}")
    assert [row["id"].partition("/")[0] for row in found] == ["main"] * 2 + ["more"] * 2 + [
        "other"
    ] * 2
    assert "another split" not in caplog.text


def test_a_source_without_a_name_has_the_repositorys() -> None:
    section = CorpusSection(path="tiny-lab/tiny-sums@v1", sources=({"path": "books/a.jsonl"},))
    assert [source.name for source in section.resolved_sources()] == ["tiny-sums", "a.jsonl"]


def test_the_keys_beside_the_path_are_those_of_its_source() -> None:
    section = CorpusSection(path="a", split="test", template="{b}", sources=({"path": "c"},))
    first, second = section.resolved_sources()
    assert (first.split, first.template, first.path) == ("test", "{b}", "a")
    assert (second.split, second.template) == ("", "")
