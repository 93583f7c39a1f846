"""A comparison with real runs: matched budgets, a stage after the arms, and the effects of a failure."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import tomli_w
import typer
from typer.testing import CliRunner

from forethought.cli.compare import compare as command
from forethought.lab.compare import schedule
from forethought.lab.compare.plan import ComparisonPlan
from forethought.lab.compare.schedule import Schedule, TrialFailed
from forethought.lab.compare.trial import Trial, arm_settings
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import EQUALS, documents, write_corpus
from forethought.lab.demo.corpus import PLAIN as DOCUMENTS
from forethought.run.cost import Cost
from forethought.run.directory import RunDirectory
from tests import tiny
from tests.e2e import forked

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PLAN: dict[str, Any] = {
    "name": "small",
    "reference": "rlp",
    "seeds": [0],
    "processes": 2,
    "settings": {
        "corpus": {"path": "{corpus}/train.jsonl", "window_tokens": 32},
        "sampling": {"group_size": 4, "max_thought_tokens": 9},
        "learner": {"steps": 2, "batch_tasks": 8},
    },
    "bases": [{"name": "late", "model": "demo"}],
    "arms": [
        {"name": "cpt", "match": "tokens", "settings": {"objective": {"name": "ntp"}}},
        {
            "name": "rlp",
            "settings": {"objective": {"name": "rlp", "parameters": {"positions": "marked"}}},
        },
        {
            "name": "broken",
            "settings": {"corpus": {"path": "./nowhere"}, "objective": {"name": "ntp"}},
        },
    ],
    "stages": [
        {"name": "sft", "settings": {"objective": {"name": "ntp"}, "learner": {"steps": 1}}}
    ],
    "evaluation": {
        "corpus": "{corpus}/heldout.jsonl",
        "window_tokens": 32,
        "num_documents": 32,
        "max_thought_tokens": 9,
    },
}


class ForkedTrial:
    """What the schedule asks of a process, of one that has its libraries in memory already."""

    def __init__(self, module: str, words: Sequence[str], output: IO[bytes]) -> None:
        self._forked = forked.Forked(module, words, Path(output.name), dict(os.environ))
        self.terminate = self._forked.kill

    @property
    def returncode(self) -> int | None:
        return self._forked.poll()

    async def wait(self) -> int:
        return await asyncio.to_thread(self._forked.wait)


def compare_forking(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """``forethought compare`` in this process, whose many trials spare themselves their imports."""

    async def started(*of: Any) -> Any:
        return ForkedTrial(*of)

    app = typer.Typer()
    app.command()(command)
    with monkeypatch.context() as patched:
        if forked.IS_POSSIBLE:
            patched.setattr(schedule, "_started", started)
        result = CliRunner().invoke(app, [str(file)])
    assert isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def compare(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forethought.cli", "compare", str(file), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, file = tmp_path / "out", tmp_path / "small.toml"
    write_corpus(directory / "corpus", num_documents=200, seed=0, mixture=DOCUMENTS, num_heldout=64)
    questions = tmp_path / "questions.jsonl"
    asked = [document.text.partition(EQUALS) for document in documents(32, seed=0, heldout=True)]
    questions.write_text(
        "".join(
            json.dumps({"question": a + b, "answer": f"#### {c.split()[0]}"}) + "\n"
            for a, b, c in asked
        )
    )
    entry = {"suite": "gsm8k-text", "data": str(questions), "limit": 24, "max_tokens": 16}
    file.write_text(tomli_w.dumps({**PLAN, "directory": str(directory), "downstream": [entry]}))
    status, said = compare_forking(file, monkeypatch)
    assert status == 1, said  # because of the broken arm only
    results = json.loads((directory / "compare.json").read_text())
    rows = {(row["arm"], row["stage"]): row for row in results["rows"]}
    assert rows["broken", ""]["num_failed"] == 1
    assert "nowhere" in next(t["error"] for t in results["trials"] if t["arm"] == "broken")
    values = {key: row["values"] for key, row in rows.items() if key[0] != "broken"}
    assert set(values) == {(a, s) for a in ("cpt", "rlp") for s in ("", "sft")}
    assert all(0 <= v["think_accuracy"]["mean"] <= 1 for v in values.values())
    for name in ("downstream_gsm8k-text", "downstream_gsm8k-text_think"):
        assert all(0 < v[name]["mean"] <= 1 for v in values.values())
        assert all(0 < v[name + "_stderr"]["mean"] < 0.11 for v in values.values())
        assert rows["cpt", "sft"]["minus_reference"][name]["mean"] == pytest.approx(
            values["cpt", "sft"][name]["mean"] - values["rlp", "sft"][name]["mean"]
        )
    budget, taken = (values[arm, ""]["tokens"]["mean"] for arm in ("rlp", "cpt"))
    a_step = 8 * 13
    assert budget <= taken < budget + a_step
    assert values["rlp", ""]["scored_tokens"]["mean"] > 0
    started_from = RunDirectory(directory / "trials/late/rlp/seed-0/run").model()
    stage = directory / "trials/late/rlp/seed-0/sft/trial.toml"
    assert f'path = "{started_from}"' in stage.read_text()
    assert (directory / "compare.png").exists()
    assert "from late, after sft" in said
    assert "from late: gsm8k-text think" in said
    # Only failed or stopped runs are repeated.
    summaries = {a: directory / f"trials/late/{a}/seed-0/run/summary.json" for a in ("cpt", "rlp")}
    stopped = json.loads(summaries["cpt"].read_text()) | {"done": False}
    summaries["cpt"].write_text(json.dumps(stopped))
    before = {
        f: f.stat().st_mtime_ns for f in directory.rglob("*.json") if f.name != "compare.json"
    }
    assert compare(file).returncode == 1
    again = {f for f, time_ns in before.items() if f.stat().st_mtime_ns != time_ns}
    assert again == {summaries["cpt"]}
    assert json.loads(summaries["cpt"].read_text())["done"] is True


def test_a_reference_that_learns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its matched arm had no last step and no budget; arms that are not matched go on."""
    directory, file = tmp_path / "out", tmp_path / "broken.toml"
    write_corpus(directory / "corpus", num_documents=200, seed=0, mixture=DOCUMENTS, num_heldout=64)
    model = tmp_path / "model"
    shutil.copytree(base_model(), model, copy_function=shutil.copyfile)
    tiny.corrupt(model)
    plan = {
        **PLAN,
        "directory": str(directory),
        "bases": [{"name": "broken", "model": str(model)}, {"name": "late", "model": "demo"}],
        "arms": [{"name": "base"}, *PLAN["arms"][:2]],
        "stages": [],
    }
    file.write_text(tomli_w.dumps(plan))
    status, said = compare_forking(file, monkeypatch)
    assert status == 1, said
    results = json.loads((directory / "compare.json").read_text())  # no NaN, which is not JSON
    errors = {(t["base"], t["arm"]): t["error"] for t in results["trials"]}
    assert [errors["late", arm] for arm in ("base", "rlp", "cpt")] == [None] * 3
    assert "exited with status 4" in errors["broken", "rlp"]
    assert "the first reason: the policy gave task" in errors["broken", "rlp"]
    has_none = "broken/cpt/seed-0 has no budget: its reference broken/rlp/seed-0 failed"
    assert errors["broken", "cpt"] == has_none
    assert f"model {model} gave a log-prob of nan" in errors["broken", "base"]
    assert has_none in said


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"step": 1, "tokens": 0}, {"step": 2, "tokens": 0}], "learned 0 tokens"),
        ([{"step": 1, "tokens": 0, "sampled_tokens": 9}] * 2, "learned 0 tokens"),
        ([], "has 0 steps in metrics.jsonl and not those of its summary"),
        ([{"step": 1, "tokens": 90}], "has 1 steps in metrics.jsonl"),
        ([{"step": 1, "tokens": 90}, {"tokens": 90}, {"step": 2, "tokens": 90}], "has 2 steps"),
    ],
)
@pytest.mark.parametrize("match", ["tokens", "flops"])
async def test_a_reference_without_a_cost(
    match: str, rows: list[dict[str, Any]], fault: str, tmp_path: Path
) -> None:
    """One that finished with another version, or whose metrics were lost; nothing is started behind it."""
    arms = [{"name": "base"}, {**PLAN["arms"][0], "match": match}, PLAN["arms"][1]]
    plan = ComparisonPlan.model_validate(
        {**PLAN, "directory": str(tmp_path), "arms": arms, "stages": []}
    )
    reference = Trial("late", "rlp", 0)
    run = reference.run(plan)
    (run.checkpoint(2) / "model").mkdir(parents=True)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_summary({"steps": 2, "done": True})
    settings = arm_settings(plan, reference, plan.arms[2], plan.bases[0], base_model(), Cost())
    (reference.folder(plan) / "trial.toml").write_text(tomli_w.dumps(settings))
    scheduled = Schedule(plan)
    with pytest.raises(TrialFailed, match=f"matched to late/rlp/seed-0, which {fault}"):
        await scheduled._make(Trial("late", "cpt", 0))
    assert not Trial("late", "cpt", 0).folder(plan).exists()


async def test_a_changed_base_invalidates_its_arms(tmp_path: Path) -> None:
    """Their settings are unchanged, but their starting point is not, so they are rerun."""
    base = {"name": "early", "model": "demo", "settings": {"corpus": {"path": "./nowhere"}}}
    plan = ComparisonPlan.model_validate({**PLAN, "directory": str(tmp_path), "bases": [base]})
    stale = tmp_path / "trials/early/rlp/seed-0/measurement.json"
    other = tmp_path / "trials/late/rlp/seed-0/measurement.json"
    for file in (stale, other, tmp_path / "trials/early/base/trial.toml"):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    outcomes = await Schedule(plan).run()
    assert all("nowhere" in (outcome.error or "") for outcome in outcomes)
    assert len(outcomes) == len(PLAN["arms"])
    assert (stale.exists(), other.exists()) == (False, True)
