"""``forethought downstream`` as a user types it, and the harness's own command on the task files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from forethought.cli.downstream import downstream
from forethought.errors import InvalidInput
from forethought.lab.demo.arms import base_model
from forethought.lab.downstream.harness import TASKS
from forethought.lab.downstream.suites import SUITES

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(downstream)
    return made


def test_tasks_path_and_suites_are_listed() -> None:
    runner = CliRunner()
    shown = runner.invoke(app(), ["--print-tasks-path"])
    assert (shown.exit_code, shown.output.strip()) == (0, str(TASKS))
    listed = runner.invoke(app(), ["--list-suites"])
    assert listed.exit_code == 0
    assert set(re.findall(r"^([\w-]+):", listed.output, re.MULTILINE)) == set(SUITES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model"], "got --suite '' and --tasks ''; expected one of --suite NAME"),
        (["model", "--suite", "rpt", "--tasks", "a"], "expected one of --suite NAME"),
        (["--suite", "rpt"], "no checkpoint is named"),
        (["model", "--suite", "glue"], "expected one of state-tracking"),
        (["nowhere", "--suite", "rpt", "--device", "cpu"], "nowhere holds no model"),
    ],
)
def test_missing_arguments_are_reported(words: list[str], message: str) -> None:
    pytest.importorskip("lm_eval")
    refused = CliRunner().invoke(app(), words)
    assert isinstance(refused.exception, InvalidInput)
    assert message in str(refused.exception)


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_table_and_a_file(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    out = tmp_path / "scores.json"
    words = [str(base_model()), "--tasks", "forethought_state_tracking_plain", "--limit", "32"]
    shown = CliRunner().invoke(app(), [*words, "--device", "cpu", "--out", str(out)], env=OFFLINE)
    assert shown.exit_code == 0, shown.output
    report = json.loads(out.read_text(encoding="utf-8"))
    (score,) = report["scores"]
    assert (score["task"], score["metric"]) == ("forethought_state_tracking_plain", "acc,none")
    assert f"{score['mean']:.4f}" in shown.output
    assert report["settings"]["limit"] == 32


@pytest.mark.timeout(300)
def test_the_harnesss_own_command_runs_our_tasks_without_a_network() -> None:
    pytest.importorskip("lm_eval")
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--limit", "32",
            "--model_args", f"pretrained={base_model()}", "--include_path", str(TASKS),
            "--tasks", "forethought_state_tracking", "--batch_size", "32",
        ],
        env=os.environ | OFFLINE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(re.findall(r"state_tracking_(\w+) *\|.*?\|(0\.\d+|1\.0+)\|", done.stdout))
    assert set(found) == {"plain", "thought", "greedy"}, done.stdout
    assert float(found["plain"]) < float(found["greedy"])
