"""Corpus: files in, windows out. Real files, real tokenizers, no network."""

from __future__ import annotations

import json
import logging
import os
from itertools import chain

import pytest

from forethought.config.sections import CorpusSection, SourceSection
from forethought.corpus.reading.text import BLOCK_BYTES
from forethought.corpus.sources import iterate_texts, open_source
from forethought.corpus.windows import cut_windows
from forethought.errors import InvalidInput
from trainer.base_corpus import train_tokenizer

TEXT = "The naïve cat sat 日本語 on the mat 🙂, and then it slept.\r\n" * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 300, "<think>", "</think>")


@pytest.fixture(scope="module")
def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<think>", "</think>", "one", "two", "three", "four", "five", "six"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        additional_special_tokens=["<think>", "</think>"],
    )


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def read(cache):
    """Open one source; fields as of SourceSection."""
    return lambda path, **fields: open_source(SourceSection(path=str(path), **fields), cache)


@pytest.fixture
def cut(read, cache):
    """The windows of one path as rows."""

    def windows_of(path, tokenizer, window_tokens=16, min_window_tokens=2):
        return list(cut_windows(read(path), tokenizer, window_tokens, min_window_tokens, cache))

    return windows_of


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def flat(rows, column):
    return list(chain.from_iterable(row[column] for row in rows))


# Reading


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "notes", "a[1]*?.txt", "日本 语.txt"])
def test_any_text_file_is_one_document_to_the_byte(tmp_path, read, name):
    path = tmp_path / name
    text = "first\r\nsecond\rthird\x7f \ufeff🙂\n\n"
    path.write_bytes(text.encode())
    assert read(path)[:] == {
        "id": [f"{name}#0"],
        "text": [text],
        "token_ids": [None],
        "marks": [[]],
        "prompt_chars": [0],
        "entropies": [[]],
    }


def test_a_leading_byte_order_mark_is_not_text(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert read(tmp_path)["text"] == ["hello", "hello"]


@pytest.mark.parametrize("piece", ["line\n", "word ", "日本語", "x"])
def test_a_text_beyond_the_block_size_is_cut_without_loss(tmp_path, read, piece):
    text = piece * (2 * BLOCK_BYTES // len(piece.encode()) + 5)
    (tmp_path / "long.txt").write_text(text, encoding="utf-8", newline="")
    rows = read(tmp_path / "long.txt")
    assert rows["id"] == ["long.txt#0", "long.txt#1", "long.txt#2"]
    assert "".join(rows["text"]) == text
    assert all(len(block.encode()) <= BLOCK_BYTES for block in rows["text"])
    if piece == "line\n":
        assert all(block.endswith("\n") for block in rows["text"])


def test_json_lines_keep_texts_that_look_like_other_types(tmp_path, read):
    texts = ["2020-01-01", "a\r\nb\0", "12", "x" * 3_000_000, "日本語"]
    path = write_lines(
        tmp_path / "a.jsonl", [{"text": text, "extra": i} for i, text in enumerate(texts)]
    )
    rows = read(path)
    assert rows["text"] == texts
    assert rows["id"] == [f"a.jsonl#{row}" for row in range(5)]


def test_json_lines_cope_with_windows_line_ends_and_blank_lines(tmp_path, read):
    (tmp_path / "a.json").write_bytes(b'{"text": "a"}\r\n\r\n{"text": "b", "marks": [0]}')
    rows = read(tmp_path / "a.json")
    assert rows["id"] == ["a.json#0", "a.json#2"]
    assert rows["marks"] == [[], [0]]


def test_parquet_and_other_field_names(tmp_path, read):
    from datasets import Dataset

    columns = {"body": ["hello", "world"], "at": [[1], []], "other": [1.0, 2.0]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", text_field="body", marks_field="at")
    assert rows[:] == {
        "id": ["a.parquet#0", "a.parquet#1"],
        "text": ["hello", "world"],
        "token_ids": [None, None],
        "marks": [[1], []],
        "prompt_chars": [0, 0],
        "entropies": [[], []],
    }


def test_a_saved_dataset_of_text_and_one_of_token_ids(tmp_path, read):
    from datasets import Dataset

    Dataset.from_dict({"text": ["hello"], "marks": [[4]]}).save_to_disk(tmp_path / "saved")
    Dataset.from_dict({"token_ids": [[5, 6, 7]], "marks": [[2]]}).save_to_disk(tmp_path / "ids")
    rows = read(tmp_path / "saved")
    assert (rows["id"], rows["text"], rows["marks"]) == (["saved#0"], ["hello"], [[4]])
    rows = read(tmp_path / "ids")
    assert (rows["text"], rows["token_ids"], rows["marks"]) == ([None], [[5, 6, 7]], [[2]])


def test_splits_are_refused_with_the_path_of_one(tmp_path, read):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_dict({"text": ["a"]})).save_to_disk(tmp_path / "splits")
    with pytest.raises(InvalidInput, match="splits/train"):
        read(tmp_path / "splits")
    assert read(tmp_path / "splits" / "train")["text"] == ["a"]


def test_a_folder_of_odd_files(tmp_path, read, caplog):
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    (tmp_path / "b.py").write_text("print(1)\n")
    (tmp_path / "sub" / "a.md").write_text("# A\n")
    (tmp_path / "pretty.json").write_text('{\n "no": "lines"\n}\n')
    write_lines(tmp_path / "sub" / "c.JSONL", [{"text": "one"}, {"text": ""}, {"text": None}])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "image.png").write_bytes(bytes(range(256)))
    (tmp_path / "zeros.bin").write_bytes(bytes(100))
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "late.txt").write_bytes(b"a " * BLOCK_BYTES + b"\xff")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "sub" / ".git" / "config").write_text("hidden")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with caplog.at_level(logging.WARNING):
        rows = read(tmp_path)
    assert rows["id"][:] == ["b.py#0", "sub/a.md#0", "sub/c.JSONL#0"]
    assert rows["text"][2] == "one"
    assert (
        "left out 8 files: a broken link (broken), empty (empty.txt), not a regular file (pipe), "
        "binary (image.png and 1 more), not UTF-8 text (late.txt and 1 more), "
        "JSON without the field 'text' (pretty.json)"
    ) in caplog.text
    assert "skipped 2 of 5 documents: empty" in caplog.text


def test_a_file_name_that_is_not_utf8_does_not_stop_a_folder(tmp_path, read):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("hello")
    assert read(tmp_path)["id"] == ["caf\ufffd.txt#0"]


def test_the_cache_in_a_folder_is_not_read_as_text(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    source = SourceSection(path=str(tmp_path))
    for _ in range(2):
        assert open_source(source, tmp_path / "cache")["text"] == ["hello"]


def test_a_source_is_read_again_only_if_it_changed(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_text("before")
    first = read(path)
    assert read(path)._fingerprint == first._fingerprint
    assert read(path).cache_files == first.cache_files
    path.write_text("after!")
    os.utime(path, ns=(1, 1))
    assert read(path)["text"] == ["after!"]


# Bad input


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"abc\xff", r"0xff at byte offset 3, expected UTF-8; convert"),
        ("b.txt", b"x" * (BLOCK_BYTES + 7) + b"\xc3(", rf"byte offset {BLOCK_BYTES + 7},"),
        ("c.txt", b"", r"0 documents, all of them empty"),
        ("d.txt", b" \n", r"1 documents, all of them empty"),
        ("e.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"line 2: got the fields \['body'\]"),
        ("f.jsonl", b'{"text": 3}\n', r"f\.jsonl#0: got text=3 \(int\), expected a string"),
        ("g.jsonl", b'{"text": "a"\n', r"line 1 is not JSON"),
        ("h.jsonl", b'{"text": "a\xff"}\n', r"line 1 is not JSON in UTF-8"),
        ("i.jsonl", b"[1]\n", r"line 1: got a JSON list, expected one object"),
        ("j.jsonl", b"[" * 100_000, r"line 1 is not JSON"),
        ("k.jsonl", b'{"text": "a\\ud800"}\n', r"lone surrogate U\+D800 at character 1"),
        ("l.jsonl", b'{"text": ""}\n{"text": null}\n', r"2 documents, all of them empty"),
        ("m.jsonl", b'{"text": "ab", "marks": [2]}\n', r"got 2, expected integers from 0 to 1"),
        ("n.jsonl", b'{"text": "ab", "marks": "0"}\n', r"expected a list of integers"),
        ("o.jsonl", b'{"text": "ab", "marks": [true]}\n', r"got True, expected integers"),
        ("p.jsonl", b'{"token_ids": [1, -1]}\n', r"token_ids: got -1, expected integers"),
        ("q.parquet", b"PAR1 nonsense", r"not a whole, readable Parquet file"),
    ],
)
def test_a_bad_file_is_refused_with_a_clear_message(tmp_path, read, name, content, expected):
    (tmp_path / name).write_bytes(content)
    for _ in range(2):  # a refused source must not be left in the cache as a good one
        with pytest.raises(InvalidInput, match=expected):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"text": "a',
        b"[1]",
        b'{"body": "b"}',
        b'{"text": 3}',
        b'{"text": "a\\ud800"}',
        b'{"text": "ab", "marks": [2]}',
        b'{"token_ids": [-1]}',
        b"\xff",
    ],
)
def test_invalid_records_are_skipped_and_counted_on_request(tmp_path, read, caplog, bad):
    """One bad line of a large file ends the run unless ``skip_invalid`` is set; never unnoticed."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n' + bad + b'\n{"text": "two"}\n')
    with pytest.raises(InvalidInput):
        read(file)
    with caplog.at_level(logging.WARNING):
        assert read(file, skip_invalid=True)["text"] == ["one", "two"]
    assert "skipped 1 of 3 documents: invalid, the first: " in caplog.text
    with pytest.raises(InvalidInput):  # the cache of the one is not the other's
        read(file)


def test_a_source_of_invalid_records_alone_is_refused(tmp_path, read):
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "b"}\n\n{"text": " "}\n')
    with pytest.raises(
        InvalidInput, match=r"2 documents, all of them empty or invalid, such as .*fields"
    ):
        read(tmp_path / "a.jsonl", skip_invalid=True)


def test_the_corpus_skips_invalid_records_of_every_source():
    sources = (SourceSection(path="b"), SourceSection(path="c", skip_invalid=True))
    for section, expected in (
        (CorpusSection(path="a", sources=sources, skip_invalid=True), [True] * 3),
        (CorpusSection(path="a", sources=sources), [False, False, True]),
    ):
        assert [source.skip_invalid for source in section.resolved_sources()] == expected


def test_a_missing_path_and_folders_without_text_are_refused(tmp_path, read):
    with pytest.raises(InvalidInput, match="does not exist; expected a file, a folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInput, match="holds no files"):
        read(tmp_path / "folder")
    (tmp_path / "folder" / "a.bin").write_bytes(bytes(9))
    with pytest.raises(InvalidInput, match="0 documents"):
        read(tmp_path / "folder")


def test_wrong_columns_of_parquet_are_refused(tmp_path, read):
    from datasets import Dataset

    Dataset.from_dict({"text": [b"bytes"], "x": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"\['text', 'x'\], expected 'body'"):
        read(tmp_path / "a.parquet", text_field="body")
    with pytest.raises(InvalidInput, match="expected a string"):
        read(tmp_path / "a.parquet")


def test_texts_for_the_tokenizer_are_those_of_the_corpus(tmp_path, cache):
    write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (tmp_path / "b.txt").write_text("three")
    section = CorpusSection(
        path=str(tmp_path / "a.jsonl"), sources=(SourceSection(path=str(tmp_path / "b.txt")),)
    )
    assert list(iterate_texts(section, cache)) == ["one", "two", "three"]
    path = write_lines(tmp_path / "ids.jsonl", [{"token_ids": [1]}])
    with pytest.raises(InvalidInput, match=r"set model\.path"):
        list(iterate_texts(CorpusSection(path=str(path)), cache))


# Windows


def test_windows_are_consecutive_and_lose_only_a_short_tail(tmp_path, cut, tokenizer):
    (tmp_path / "notes.txt").write_text(TEXT, encoding="utf-8", newline="")
    token_ids = tokenizer(TEXT)["input_ids"]
    window = next(size for size in range(16, 64) if len(token_ids) % size in (1, 2, 3))
    rows = cut(tmp_path / "notes.txt", tokenizer, window, min_window_tokens=4)
    assert [row["document_id"] for row in rows] == [f"notes.txt#0:{i}" for i in range(len(rows))]
    assert flat(rows, "token_ids") == token_ids[: len(token_ids) // window * window]
    rows = cut(tmp_path / "notes.txt", tokenizer, window, min_window_tokens=1)
    assert flat(rows, "token_ids") == token_ids


def test_windows_never_cross_documents_and_short_documents_are_counted(
    tmp_path, cut, word_tokenizer, caplog
):
    texts = ["one two three four five", "one", "six six"]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    with caplog.at_level(logging.WARNING):
        rows = cut(path, word_tokenizer, window_tokens=4, min_window_tokens=2)
    assert {row["document_id"]: row["token_ids"] for row in rows} == {
        "a.jsonl#0:0": [3, 4, 5, 6],
        "a.jsonl#2:0": [8, 8],
    }
    assert (
        "of 3 documents from a.jsonl#0 on, 1 shorter than corpus.min_window_tokens=2" in caplog.text
    )


def test_bytes_of_byte_level_bpe_add_up_to_the_text(tmp_path, cut, tokenizer):
    text = TEXT + "<think> a </think>\0\t\ufeff end "
    rows = cut(write_lines(tmp_path / "a.jsonl", [{"text": text}]), tokenizer, 16, 1)
    assert sum(flat(rows, "token_bytes")) == len(text.encode())
    assert all(len(row["token_bytes"]) == len(row["token_ids"]) for row in rows)


def test_bytes_of_a_word_vocabulary_count_the_space_before(tmp_path, cut, word_tokenizer):
    (tmp_path / "a.txt").write_text("one  two ünknown\n<think> six ")
    (row,) = cut(tmp_path / "a.txt", word_tokenizer)
    assert row["token_ids"] == [3, 4, 0, 1, 8]
    assert row["token_bytes"] == [3, 5, 9, 8, 4]


def test_bytes_of_a_sentencepiece_style_vocabulary(tmp_path, cut):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", *fallback, "▁", "a", "é", "▁a"]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    text = "a a é日 aé"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (row,) = cut(tmp_path / "a.txt", tokenizer)
    assert sum(row["token_bytes"]) == len(text.encode())
    assert row["token_bytes"][:3] == [1, 2, 1]


def test_a_marker_in_the_text_becomes_its_token(tmp_path, cut, tokenizer):
    (tmp_path / "a.txt").write_text("2+2= <think>two twos</think> 4")
    token_ids = flat(cut(tmp_path / "a.txt", tokenizer, 64), "token_ids")
    assert token_ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert token_ids.count(tokenizer.convert_tokens_to_ids("</think>")) == 1


def test_a_mark_points_at_the_token_that_contains_its_character(tmp_path, cut, tokenizer):
    text = "The naïve 日本 cat <think>sat</think> on 🙂 the mat, it slept."
    marks = [i for i, character in enumerate(text) if character in "ï本🙂cp."]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text, "marks": marks}])
    rows = cut(path, tokenizer, 8, 1)
    assert len(rows) > 2
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    expected = {
        next(i for i, (start, end) in enumerate(offsets) if start <= mark < end) for mark in marks
    }
    got = {8 * number + mark for number, row in enumerate(rows) for mark in row["marks"]}
    assert got == expected
    assert all(0 <= mark < len(row["token_ids"]) for row in rows for mark in row["marks"])


def test_a_mark_on_a_space_is_the_next_token_and_at_the_end_none(tmp_path, cut, word_tokenizer):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "one two six ", "marks": [3, 8, 9, 11]}])
    (row,) = cut(path, word_tokenizer)
    assert row["marks"] == [1, 2]


def test_token_ids_are_cut_as_given_and_checked(tmp_path, cut, tokenizer):
    ids = tokenizer("The cat sat on the mat")["input_ids"]
    path = write_lines(tmp_path / "a.jsonl", [{"token_ids": ids, "marks": [0, 5]}])
    rows = cut(path, tokenizer, 4, 1)
    assert flat(rows, "token_ids") == ids
    assert [row["marks"] for row in rows][:2] == [[0], [1]]
    assert sum(flat(rows, "token_bytes")) == len("The cat sat on the mat")
    path = write_lines(tmp_path / "b.jsonl", [{"token_ids": [1, 300_000]}])
    with pytest.raises(InvalidInput, match="got token id 300000, expected ids below"):
        cut(path, tokenizer)


def test_bytes_of_given_ids_are_empty_if_the_vocabulary_does_not_tell(
    tmp_path, cut, word_tokenizer
):
    path = write_lines(tmp_path / "a.jsonl", [{"token_ids": [3, 4, 5]}])
    (row,) = cut(path, word_tokenizer)
    assert row["token_bytes"] == []


def test_sizes_that_give_no_window_are_refused(tmp_path, cut, tokenizer):
    (tmp_path / "a.txt").write_text("hi")
    with pytest.raises(
        InvalidInput,
        match=r"from a\.txt#0 on, expected .* 1 shorter than corpus\.min_window_tokens=50",
    ):
        cut(tmp_path / "a.txt", tokenizer, 64, 50)
    with pytest.raises(InvalidInput, match=r"expected at most corpus\.window_tokens=4"):
        cut(tmp_path / "a.txt", tokenizer, 4, 5)


def test_cached_windows_are_found_regardless_of_earlier_tokenizer_use(
    tmp_path, read, cache, tokenizer, word_tokenizer
):
    (tmp_path / "a.txt").write_text(TEXT)
    first = cut_windows(read(tmp_path / "a.txt"), tokenizer, 16, 2, cache)
    tokenizer(["a b c", "d"], truncation=True, max_length=2, padding=True)
    again = cut_windows(read(tmp_path / "a.txt"), tokenizer, 16, 2, cache)
    assert again.cache_files == first.cache_files
    assert len(list(cache.glob("windows-*.arrow"))) == 1
    cut_windows(read(tmp_path / "a.txt"), tokenizer, 17, 2, cache)
    cut_windows(read(tmp_path / "a.txt"), word_tokenizer, 16, 2, cache)
    assert len(list(cache.glob("windows-*.arrow"))) == 3


def test_a_truncating_tokenizer_does_not_shorten_documents(tmp_path, cut):
    tokenizer = train_tokenizer([], 300, "<think>", "</think>")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.model_max_length = 5
    (tmp_path / "a.txt").write_text("x" * 100)
    assert len(flat(cut(tmp_path / "a.txt", tokenizer, 16, 1), "token_ids")) == 100
