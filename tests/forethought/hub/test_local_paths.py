"""Local models and corpora ask no other host: the libraries are told so, without HF_HUB_OFFLINE."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from forethought.compute.model import check_model_files, load_language_model
from forethought.config.sections import CorpusSection
from forethought.corpus.mixture import open_corpus
from tests import tiny


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every host that something looks up or connects to; none answers."""
    found: list[Any] = []

    def refuse(*arguments: Any, **keywords: Any) -> None:
        found.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


def test_a_model_and_a_corpus_are_read_without_asking_the_hub(
    tmp_path: Path, asked: list[Any]
) -> None:
    directory = tiny.build_model_directory(tmp_path / "model")
    check_model_files(directory)
    loaded = load_language_model(directory, "float32", "cpu")
    (tmp_path / "books.jsonl").write_text('{"text": "a text"}\n')
    section = CorpusSection(path=str(tmp_path / "books.jsonl"))
    assert open_corpus(section, loaded.tokenizer, 0, tmp_path / "cache").num_windows == 1
    assert asked == []
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("huggingface.co", 443))
