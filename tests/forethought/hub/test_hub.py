"""Models and data sets from a cache, offline, through the real huggingface_hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethought.errors import InvalidInput
from forethought.hub import HubId, Selection, fetch_dataset, fetch_model, model_folder
from tests.hub_cache import DATASET, FIRST, MODEL, SECOND, HubCache

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    cache = HubCache(tmp_path / "home")
    cache.use(monkeypatch)
    return cache


def test_a_branch_becomes_the_commit_that_the_cache_has(cache: HubCache) -> None:
    cache.add("model", MODEL, FILES, FIRST, ref="v1")
    folder = cache.add("model", MODEL, FILES, SECOND)
    assert fetch_model(HubId(MODEL)).hub_id == HubId(MODEL, SECOND)
    assert fetch_model(HubId(MODEL, "v1")).hub_id == HubId(MODEL, FIRST)
    assert fetch_model(HubId(MODEL, FIRST)).hub_id == HubId(MODEL, FIRST)
    assert model_folder(MODEL) == folder
    assert model_folder(f"{MODEL}@v1").name == FIRST


def test_a_local_folder_is_itself(cache: HubCache, tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path
    assert model_folder("~/models/absent", "v1") == Path.home() / "models/absent"


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("tiny-lab/absent", "", r"'tiny-lab/absent' does not exist here.*\(revision main\)"),
        (MODEL, "v9", r"\(revision v9\).*hf download tiny-lab/tiny-model --revision v9`"),
        (MODEL, SECOND, f"revision {SECOND}"),
    ],
)
def test_what_the_cache_lacks_is_said_in_one_line(
    cache: HubCache, name: str, revision: str, said: str
) -> None:
    cache.add("model", MODEL, FILES)
    with pytest.raises(InvalidInput, match=said) as raised:
        fetch_model(HubId(name, revision))
    message = str(raised.value)
    assert "\n" not in message
    assert str(cache.home / "hub") in message
    assert "HF_HUB_OFFLINE is set" in message


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}", "tokenizer.json": b"{}"},
        {"model.safetensors": b"weights"},
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(INDEX).encode(),
            "model-1.safetensors": b"weights",
        },
        {"config.json": b"{}", "model.safetensors.index.json": b"{", "model-1.safetensors": b""},
    ],
    ids=["no weights", "no configuration", "a shard is missing", "a damaged index"],
)
def test_a_model_that_was_downloaded_in_part_is_not_used(
    cache: HubCache, files: dict[str, bytes]
) -> None:
    cache.add("model", MODEL, files)
    with pytest.raises(InvalidInput, match="is not in the cache"):
        fetch_model(HubId(MODEL))


def test_a_file_whose_blob_is_gone_is_missing(cache: HubCache) -> None:
    folder = cache.add("model", MODEL, FILES)
    (folder / "model.safetensors").resolve().unlink()
    with pytest.raises(InvalidInput, match="is not in the cache"):
        fetch_model(HubId(MODEL))


@pytest.mark.parametrize(
    "weights", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "model.safetensors"]
)
def test_either_kind_of_weights_will_do(cache: HubCache, weights: str) -> None:
    folder = cache.add("model", MODEL, {"config.json": b"{}", weights: b"weights"})
    assert fetch_model(HubId(MODEL)).folder == folder


def test_a_data_set_is_found_by_split(cache: HubCache) -> None:
    folder = cache.add("dataset", DATASET, {"train.jsonl": b"{}", "test.jsonl": b"{}"})
    for selection in (Selection("test"), Selection(prefers_train=True)):
        assert fetch_dataset(HubId(DATASET), selection).folder == folder
    with pytest.raises(InvalidInput, match=r"'tiny-lab/tiny-sums': no file is of split 'dev'"):
        fetch_dataset(HubId(DATASET), Selection("dev"))


def test_a_data_set_of_which_only_the_readme_is_there_is_not_used(cache: HubCache) -> None:
    cache.add("dataset", DATASET, {"README.md": b"# sums"})
    with pytest.raises(InvalidInput, match="--repo-type dataset --revision 1111"):
        fetch_dataset(HubId(DATASET), Selection(prefers_train=True))


def test_models_and_data_sets_of_one_name_are_two(cache: HubCache) -> None:
    cache.add("model", MODEL, FILES)
    with pytest.raises(InvalidInput, match="data set 'tiny-lab/tiny-model' does not exist here"):
        fetch_dataset(HubId(MODEL), Selection())
