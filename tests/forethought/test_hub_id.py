"""Which strings are ids of the hub, and which are paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.hub_id import HubId


@pytest.mark.parametrize(
    ("path", "revision", "expected"),
    [
        ("gpt2", "", HubId("gpt2")),
        ("openai/gsm8k", "", HubId("openai/gsm8k")),
        ("openai/gsm8k", "v1", HubId("openai/gsm8k", "v1")),
        ("openai/gsm8k@refs/pr/3", "v1", HubId("openai/gsm8k", "refs/pr/3")),
        ("Qwen/Qwen3-1.7B-Base", "", HubId("Qwen/Qwen3-1.7B-Base")),
    ],
)
def test_a_name_with_or_without_an_owner_is_an_id(
    path: str, revision: str, expected: HubId
) -> None:
    assert HubId.parse(path, revision) == expected


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "./gsm8k", "../gsm8k", "~/gsm8k", "/models/base", "a/b/c", "books/", "books/*.gz",
     "data/train.jsonl", "notes.txt", "a.jsonl.gz", "a b", "a--b", "a..b", "name@", "owner/"],
)  # fmt: skip
def test_what_has_another_form_is_a_path(path: str) -> None:
    assert HubId.parse(path, "main") is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert HubId.parse("openai/gsm8k", "v1") is None
    assert HubId.parse("openai/gsm8k@v1") == HubId("openai/gsm8k", "v1")


def test_only_a_whole_commit_is_pinned() -> None:
    assert HubId("a/b", "0123456789abcdef" * 2 + "01234567").is_pinned
    assert not HubId("a/b", "0123456").is_pinned
    assert not HubId("a/b").is_pinned
    assert str(HubId("a/b", "v1")) == "a/b@v1"
    assert HubId("a/b").short_name == "b"
