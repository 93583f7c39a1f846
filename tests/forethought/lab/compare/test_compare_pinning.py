"""A comparison's models and data sets of the hub get a commit before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.errors import InvalidInput
from forethought.lab.compare.pinning import pinned_plan
from forethought.lab.compare.plan import load_plan
from tests.hub_cache import DATASET, FIRST, MODEL, HubCache

PLAN = f"""
name = "tiny"
directory = "{{directory}}"
reference = "rlp"
[settings.corpus]
path = "{DATASET}"
template = "{{{{question}}}}"
[[bases]]
name = "ours"
model = "{MODEL}"
[[bases]]
name = "demo"
model = "demo"
[[arms]]
name = "rlp"
settings = {{{{ objective = {{{{ name = "rlp" }}}} }}}}
[[arms]]
name = "local"
[[arms.settings.corpus.sources]]
path = "{DATASET}"
split = "test"
[[arms.settings.corpus.sources]]
path = "."
[evaluation]
corpus = "{DATASET}"
split = "test"
template = "{{{{question}}}}"
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN.format(directory=tmp_path / "out"))
    return file


def test_every_run_and_measurement_gets_the_commit(
    tmp_path: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = HubCache(tmp_path / "home")
    cache.use(monkeypatch)
    cache.add("model", MODEL, {"config.json": b"{}", "model.safetensors": b""})
    cache.add("dataset", DATASET, {"train.jsonl": b"{}", "test.jsonl": b"{}"})
    plan = pinned_plan(load_plan(plan_file))
    assert [base.model for base in plan.bases] == [f"{MODEL}@{FIRST}", "demo"]
    assert plan.settings["corpus"] == {
        "path": DATASET,
        "revision": FIRST,
        "template": "{question}",
    }
    first, second = plan.arms[1].settings["corpus"]["sources"]
    assert first == {"path": DATASET, "revision": FIRST, "split": "test"}
    assert second == {"path": "."}
    assert (plan.evaluation.corpus, plan.evaluation.revision) == (DATASET, FIRST)
    assert plan.arms[0] == load_plan(plan_file).arms[0]


def test_what_is_not_available_is_said_before_anything_starts(
    tmp_path: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HubCache(tmp_path / "home").use(monkeypatch)
    with pytest.raises(InvalidInput, match="does not exist here"):
        pinned_plan(load_plan(plan_file))
