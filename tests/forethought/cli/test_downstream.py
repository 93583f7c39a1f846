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
from forethought.compute.model import load_tokenizer
from forethought.errors import InvalidInput
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import EQUALS, documents
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
        (["model", "--suite", "glue"], "expected one of gsm8k, gsm8k-text"),
        (["model", "--suite", "rpt", "--data", "x.jsonl"], "one file, and rpt reads data sets"),
        (["/no/where", "--suite", "rpt", "--device", "cpu"], "/no/where is not a checkpoint"),
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


def lm_eval(*words: str) -> str:
    """What the harness's own command prints, without a network."""
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu",
            "--include_path", str(TASKS), "--batch_size", "16", *words,
        ],
        env=os.environ | OFFLINE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """The demo's held-out questions as a file in GSM8K's format."""
    file = tmp_path / "questions.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for document in documents(48, seed=0, heldout=True):
            question, equals, rest = document.text.partition(EQUALS)
            row = {"question": question + equals, "answer": f"so\n#### {rest.split()[0]}"}
            out.write(json.dumps(row) + "\n")
    return file


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("thinks", [False, True])
def test_a_local_file_gives_the_figure_of_plain_lm_eval(
    tmp_path: Path, questions: Path, thinks: bool
) -> None:
    pytest.importorskip("lm_eval")
    out = tmp_path / "scores.json"
    words = [str(base_model()), "--suite", "gsm8k-text", "--data", str(questions), "--limit", "40"]
    words += ["--device", "cpu", "--batch-size", "16", "--max-tokens", "11", "--out", str(out)]
    shown = CliRunner().invoke(app(), [*words, *(["--think"] if thinks else [])], env=OFFLINE)
    assert shown.exit_code == 0, shown.output
    assert "40 of the 48 questions of questions.jsonl" in shown.output
    (score,) = json.loads(out.read_text(encoding="utf-8"))["scores"]
    assert 2 / 7 < score["mean"] < 1  # chance is 1/7
    assert score["stderr"] == pytest.approx(
        (score["mean"] * (1 - score["mean"]) / 39) ** 0.5, abs=1e-4
    )
    close_id = load_tokenizer(base_model()).get_vocab()["</think>"]
    of_data = {"data": str(questions)} | ({"think_open": "<think>"} if thinks else {})
    printed = lm_eval(
        "--model_args",
        f"pretrained={base_model()}" + (f",think_end_token={close_id}" if thinks else ""),
        *("--tasks", "forethought_gsm8k_text", "--metadata", json.dumps(of_data)),
        *("--limit", "40", "--gen_kwargs", "max_gen_toks=11"),
    )
    (row,) = [line for line in printed.splitlines() if "exact_match" in line]
    mean, stderr = (float(cell) for cell in row.split("|") if re.fullmatch(r" *[01]\.\d+ *", cell))
    assert mean == pytest.approx(score["mean"], abs=1e-4)
    assert stderr == pytest.approx(score["stderr"], abs=1e-4)


@pytest.mark.timeout(300)
def test_the_harnesss_own_command_runs_our_tasks_without_a_network() -> None:
    pytest.importorskip("lm_eval")
    printed = lm_eval(
        *("--model_args", f"pretrained={base_model()}", "--limit", "32"),
        *("--tasks", "forethought_state_tracking"),
    )
    found = dict(re.findall(r"state_tracking_(\w+) *\|.*?\|(0\.\d+|1\.0+)\|", printed))
    assert set(found) == {"plain", "thought", "greedy"}, printed
    assert float(found["plain"]) < float(found["greedy"])
