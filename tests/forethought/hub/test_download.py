"""Downloads from a hub on loopback, each in a process of its own, because the libraries read their
settings once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_cache import DATASET, FIRST, MODEL, SECOND, HubCache
from tests.hub_server import HubServer, Repositories

MODEL_FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same",
    "consolidated.safetensors": b"the same",
    "onnx/model.json": b"{}",
    "README.md": b"# a model",
    "run.py": b"raise SystemExit",
}
DATA_FILES = {
    "README.md": b"# sums",
    "main/train-00000-of-00001.parquet": b"1",
    "main/test-00000-of-00001.parquet": b"2",
    "socratic/train-00000-of-00001.parquet": b"3",
}
OLD, PLAIN = "tiny-lab/pickled", "tiny-lab/plain"
HUB: Repositories = {
    ("model", MODEL): (FIRST, MODEL_FILES),
    ("model", OLD): (FIRST, {"config.json": b"{}", "pytorch_model.bin": b"weights"}),
    ("dataset", DATASET): (FIRST, DATA_FILES),
    ("dataset", PLAIN): (SECOND, {"a.jsonl": b"{}", "b.jsonl": b"[]"}),
}


def fetched(code: str, server: HubServer, home: Path, *, offline: bool = False) -> str:
    """What ``code`` prints in a process that downloads from ``server`` into ``home``."""
    environment = HubCache(home).environment(offline=offline) | {"HF_ENDPOINT": server.url}
    code = f"from forethought.hub import *\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_model_is_downloaded_once_with_what_it_needs(tmp_path: Path) -> None:
    code = f"print(fetch_model(HubId('{MODEL}')).hub_id)"
    with HubServer(HUB) as server:
        assert fetched(code, server, tmp_path) == f"{MODEL}@{FIRST}"
        assert sorted(server.downloads) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert fetched(code, server, tmp_path) == f"{MODEL}@{FIRST}"
        assert len(server.downloads) == 3
        assert fetched(code, server, tmp_path, offline=True) == f"{MODEL}@{FIRST}"
    assert fetched(code, server, tmp_path) == f"{MODEL}@{FIRST}"  # nothing answers any more


def test_a_model_without_safetensors_gets_its_other_weights(tmp_path: Path) -> None:
    with HubServer(HUB) as server:
        fetched(f"fetch_model(HubId('{OLD}'))", server, tmp_path)
        assert sorted(server.downloads) == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize(
    ("selection", "files"),
    [
        ("Selection('test', 'main')", ["test-00000-of-00001.parquet"]),
        ("Selection(subset='main', prefers_train=True)", ["train-00000-of-00001.parquet"]),
        ("Selection('train')", ["train-00000-of-00001.parquet"] * 2),
    ],
)
def test_only_the_split_is_downloaded(tmp_path: Path, selection: str, files: list[str]) -> None:
    with HubServer(HUB) as server:
        code = f"print(fetch_dataset(HubId('{DATASET}'), {selection}).hub_id)"
        assert fetched(code, server, tmp_path) == f"{DATASET}@{FIRST}"
        assert sorted(server.downloads) == ["README.md", *files]


def test_a_data_set_without_splits_is_downloaded_as_a_whole(tmp_path: Path) -> None:
    with HubServer(HUB) as server:
        code = f"print(fetch_dataset(HubId('{PLAIN}'), Selection(prefers_train=True)).hub_id)"
        assert fetched(code, server, tmp_path) == f"{PLAIN}@{SECOND}"
        assert sorted(server.downloads) == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("fetch_model(HubId('tiny-lab/absent'))", "the hub has none, or a private one"),
        (f"fetch_model(HubId('{MODEL}', 'v9'))", "but not this revision"),
        (f"fetch_model(HubId('{MODEL}', '{SECOND}'))", "but not this revision"),
        (f"fetch_dataset(HubId('{DATASET}'), Selection('dev'))", "no file is of split 'dev'"),
    ],
)
def test_what_the_hub_lacks_is_said(tmp_path: Path, call: str, said: str) -> None:
    with HubServer(HUB) as server:
        assert said in fetched(call, server, tmp_path)
