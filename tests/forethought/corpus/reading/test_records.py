"""One rule for a file wherever it is: named, in a folder, below it, or one of several sources."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.reading import json_records, records
from forethought.corpus.sources import iterate_texts, open_source
from forethought.errors import InvalidInput

RECORDS = [{"text": "one", "marks": [0]}, {"text": "two \u2028 zwei"}, {"text": "2020-01-01"}]
TEXTS = [record["text"] for record in RECORDS]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
COLUMNS = {"text": TEXTS}


def write_arrow_file(path: Path) -> None:
    import pyarrow as pa

    table = pa.table(COLUMNS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_arrow_stream(path: Path) -> None:
    import pyarrow as pa

    table = pa.table(COLUMNS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


FILES: dict[str, Callable[[Path], Any]] = {
    "lines.jsonl": lambda path: path.write_text(LINES),
    "lines.ndjson": lambda path: path.write_text(LINES),
    "LINES.JSONL": lambda path: path.write_text(LINES),
    "lines.json": lambda path: path.write_text(LINES),
    "array.json": lambda path: path.write_text("\ufeff" + json.dumps(RECORDS)),
    "pretty.json": lambda path: path.write_text("\n" + json.dumps(RECORDS, indent=2) + "\n"),
    "rows.csv": lambda path: path.write_text(
        "\ufeffno,text\r\n1,one\r\n2,two \u2028 zwei\r\n3,2020-01-01\r\n"
    ),
    "rows.TSV": lambda path: path.write_text("text\tno\none\t1\ntwo \u2028 zwei\t2\n2020-01-01\t3"),
    "rows.parquet": lambda path: Dataset.from_dict(COLUMNS).to_parquet(path),
    "file.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
    "saved": lambda path: Dataset.from_dict(COLUMNS).save_to_disk(path),
}


def texts(path: Path, cache: Path, **fields: Any) -> list[str]:
    return list(open_source(SourceSection(path=str(path), **fields), cache)["text"])


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_alike_wherever_it_is(tmp_path: Path, name: str) -> None:
    folder, cache = tmp_path / "books", tmp_path / "cache"
    (folder / "below" / "it").mkdir(parents=True)
    places = [folder / name, folder / "below" / "it" / name]
    for place in places:
        FILES[name](place)
    sources = tuple(SourceSection(path=str(place)) for place in places)
    section = CorpusSection(sources=sources)
    assert texts(tmp_path / "*" / "**" / name, cache) == TEXTS * 2
    # In one run and with one cache, in both orders: the folder first, then what is in it, then again.
    assert texts(folder, cache) == TEXTS * 2
    assert texts(places[0], cache) == TEXTS
    assert texts(folder / "below", cache) == TEXTS
    assert list(iterate_texts(section, cache)) == TEXTS * 2
    assert texts(folder, cache) == TEXTS * 2
    ids = open_source(SourceSection(path=str(folder)), cache)["id"]
    assert {each.rpartition("#")[0] for each in ids} == {name, f"below/it/{name}"}
    assert open_source(SourceSection(path=str(places[1])), cache)["id"][0].startswith(f"{name}#")


def test_a_link_is_read_by_its_own_name(tmp_path: Path) -> None:
    """The cache of a hub holds nameless files, and links to them with names."""
    blob = tmp_path / "0c95"
    blob.write_text(LINES)
    (tmp_path / "a.txt").symlink_to(blob)
    (tmp_path / "a.jsonl").symlink_to(blob)
    assert texts(tmp_path / "a.txt", tmp_path / "cache") == [LINES]
    assert texts(tmp_path / "a.jsonl", tmp_path / "cache") == TEXTS
    assert texts(blob, tmp_path / "cache") == [LINES]


@pytest.mark.parametrize(
    "content",
    [json.dumps({"text": "one"}, indent=2), '{"text":\n"one"}', '{"of": {\n}, "text": "one"}'],
)
def test_one_object_over_many_lines_is_a_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert texts(tmp_path, tmp_path / "cache") == ["one"]


def test_a_long_array_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "_CHUNK_CHARACTERS", 7)
    records = [{"text": "日本" * i, "of": [{"]": i}]} for i in range(1, 40)]
    (tmp_path / "a.json").write_text(json.dumps(records, ensure_ascii=False))
    found = texts(tmp_path / "a.json", tmp_path / "cache")
    assert found == [record["text"] for record in records]


def test_values_with_delimiters_and_line_ends_are_read_whole(tmp_path: Path) -> None:
    long = "x" * 200_000  # the csv module's own limit is 128 KiB
    (tmp_path / "a.csv").write_text(f'text,n\r\n"a, ""b""\r\nc\n",1\r\n{long},2\r\n')
    assert texts(tmp_path / "a.csv", tmp_path / "cache") == ['a, "b"\r\nc\n', long]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b'{"model": 1}', "JSON without the field 'text'"),
        ("index.json", b'{\n  "files": ["a"]\n}', "JSON without the field 'text'"),
        ("hand.json", b'{"name": "books",\n "files": ["a"]}', "JSON without the field 'text'"),
        ("labels.json", b'[{"label": 1}]', "JSON without the field 'text'"),
        ("languages.json", b'["de", "en"]', "JSON without the field 'text'"),
        ("table.csv", b"label,n\n1,2\n", "CSV without the column 'text'"),
        ("late.txt", b"a" * 9000 + b"\xff", "not UTF-8 text"),
        ("zeros.bin", bytes(9), "binary"),
        ("a.zip", b"PK\x03\x04\x14\x00\x00", "binary"),
        ("empty.jsonl", b"", "empty"),
        ("README.md", b"# Books\n", "documentation beside records"),
        ("LICENSE", b"MIT", "documentation beside records"),
    ],
)
def test_what_holds_no_records_is_left_out_of_a_folder_and_refused_on_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes, reason: str
) -> None:
    folder, cache = tmp_path / "books", tmp_path / "cache"
    folder.mkdir()
    (folder / "lines.jsonl").write_text(LINES)
    (folder / name).write_bytes(content)
    for _ in ("read", "from the cache"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert texts(folder, cache) == TEXTS
        assert "books: 3 documents of 1 file (1 JSON lines)" in caplog.text
        assert f"books: left out 1 file: {reason} ({name})" in caplog.text
    if "documentation" in reason:
        assert texts(folder / name, cache) == [content.decode()]
    else:
        with pytest.raises(InvalidInput, match="expected"):
            texts(folder / name, cache)


def test_a_readme_among_texts_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Notes\n")
    (tmp_path / "a.txt").write_text("a")
    assert texts(tmp_path, tmp_path / "cache") == ["# Notes\n", "a"]


def test_folders_that_are_not_walked_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    books, run = tmp_path / "books", tmp_path / "books" / "runs" / "first"
    run.mkdir(parents=True)
    for name in ("lock", "up.toml", "trainer.log"):
        (run / name).write_text("not a corpus")
    (books / "linked").symlink_to(tmp_path)
    (books / "a.txt").write_text("a")
    assert texts(books, tmp_path / "cache") == ["a"]
    assert (
        "left out 2 files: a link to a folder, not followed (linked), "
        "the directory of a run (runs/first)"
    ) in caplog.text


def test_a_pattern_finds_nothing_inside_cache_runs_and_saved_datasets(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    for name in ("lock", "up.toml", "a.json"):
        (run / name).write_text(LINES)
    Dataset.from_dict(COLUMNS).save_to_disk(tmp_path / "saved")
    (tmp_path / "a.json").write_text(LINES)
    for _ in range(2):  # the second time with the first's report in the cache
        assert texts(tmp_path / "**" / "*.json", tmp_path / "cache") == TEXTS


def test_a_pattern_names_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a[1].txt").write_text("a")
    (tmp_path / "below" / "b.txt").write_text("b")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "c.jsonl").write_text(LINES)
    cache = tmp_path / ".cache"
    assert texts(tmp_path / "**" / "*.txt", cache) == ["a", "b"]
    assert sorted(texts(tmp_path / "**", cache)) == sorted(["a", "b", *TEXTS])
    assert texts(tmp_path / "a[1].txt", cache) == ["a"]  # a file of that name is no pattern
    with pytest.raises(InvalidInput, match="does not exist; expected a file, a folder, a pattern"):
        texts(tmp_path / "*.gz", cache)


def test_splits_inside_a_folder_are_refused_as_elsewhere(tmp_path: Path) -> None:
    DatasetDict(train=Dataset.from_dict(COLUMNS)).save_to_disk(tmp_path / "books" / "splits")
    with pytest.raises(InvalidInput, match="splits/train"):
        texts(tmp_path / "books", tmp_path / "cache")


def test_a_download_with_its_description_is_no_saved_dataset(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"description": ""}')
    write_arrow_stream(tmp_path / "part-00000.arrow")
    assert texts(tmp_path, tmp_path / "cache") == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": "a"}, {"text"', "not JSON in UTF-8 after record 0"),
        ("a.json", b'[{"text": "a"}] {"text": "b"}', "after record 0"),
        ("a.json", b'{"text": "a\n{"text": "b"}', "line 1 is not JSON"),
        ("a.json", b'[{"text": "a"}, 7]', "record 1: got a JSON int, expected one object"),
        ("a.json", b'[{"text": "a"}, "\xff"]', "after record 0"),
        ("a.json", b"[" * 100_000, "not JSON in UTF-8 after record 0"),
        ("a.csv", b"text,n\na,1\nb,2,3\n", "row 1: got more values than the header"),
        ("a.csv", b"text\na\n\xff\n", "not a whole, readable CSV file in UTF-8"),
        ("a.arrow", b"ARROW1 nonsense", "not a whole, readable Arrow file"),
        ("a.parquet.gz", b"PAR1", r"got Parquet inside \.gz, expected the plain file"),
    ],
)
def test_damaged_files_are_refused_by_name_or_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "b.jsonl").write_text(LINES)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InvalidInput, match=rf"{name}.* {message}"):
            texts(path, tmp_path / "cache")
    assert texts(tmp_path, tmp_path / "cache", skip_invalid=True)[-3:] == TEXTS
    assert "documents: invalid, the first: " in caplog.text


def test_a_line_without_end_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_RECORD_BYTES", 1 << 10)
    monkeypatch.setattr(json_records, "_CHUNK_CHARACTERS", 1 << 6)
    huge = json.dumps({"text": "x" * 5000})
    for name, content in (("a.jsonl", f"{huge}\n{LINES}"), ("b.json", f"[{huge}]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidInput, match=r"more than 0 MiB, or JSON that never ends"):
            texts(tmp_path / name, tmp_path / "cache")
    assert texts(tmp_path / "a.jsonl", tmp_path / "cache", skip_invalid=True) == TEXTS


def test_a_file_that_grows_while_it_is_read_is_read_again_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)

    def read_and_append(*given: Any) -> Any:
        yield from json_records.read_json_lines(*given)
        path.write_text(LINES * 2)

    with caplog.at_level(logging.INFO), monkeypatch.context() as patched:
        patched.setattr(records, "read_json_lines", read_and_append)
        assert texts(path, tmp_path / "cache") == TEXTS
    assert "a.jsonl: 3 documents of 1 file" in caplog.text
    assert texts(path, tmp_path / "cache") == TEXTS * 2


def test_a_file_that_changed_in_place_is_read_again(tmp_path: Path) -> None:
    """Of the same size and modification time, as a copy that keeps times leaves it."""
    import os

    path = tmp_path / "a.txt"
    for text in ("before", "after!"):
        path.write_text(text)
        os.utime(path, ns=(1, 1))
        assert texts(path, tmp_path / "cache") == [text]
