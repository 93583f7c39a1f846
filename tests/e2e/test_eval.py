"""``forethought eval`` on a real run: its newest checkpoint, its base, and its series."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from forethought.cli.eval import evaluate
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import PLAIN, write_corpus
from tests.e2e.processes import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NUM_STEPS = 15
WORDS = ("objective.name=rpt", "objective.parameters={prompt = 'plain', positions = 'marked'}")
FEW = ("--num-positions", "40", "--num-documents", "40")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of RPT with five checkpoints, and held-out text next to its corpus."""
    folder = tmp_path_factory.mktemp("eval")
    with Cluster("memory://", folder) as cluster:
        write_corpus(folder / "corpus", num_documents=500, seed=0, mixture=PLAIN, num_heldout=60)
        more = (f"learner.steps={NUM_STEPS}", "checkpoint.keep=10", "learner.learning_rate=1e-3")
        cluster.whole_run("rpt", *WORDS, *more)
        return cluster.directory("rpt").root


def report_of(out: Path, *words: str) -> tuple[str, dict[str, Any]]:
    """The command's output and its report."""
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, [*words, *FEW, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert (out / "eval.png").read_bytes().startswith(b"\x89PNG")
    written: dict[str, Any] = json.loads((out / "eval.json").read_text())
    return result.stdout, written


async def test_a_run_needs_no_configuration(run: Path, tmp_path: Path) -> None:
    said, report = report_of(tmp_path, str(run))
    assert "the heldout text next to the run's corpus" in said
    (checkpoint,) = report["checkpoints"]
    assert checkpoint["label"] == "rpt/step-000015"
    assert set(checkpoint["splits"]) == {"all", "easy", "medium", "hard", "marked", "noise"}
    assert report["laws"] == report["differences"] == {}
    for figures in checkpoint["splits"].values():
        assert figures["think_nll"] >= figures["marginal_nll"]
        gain = figures["no_think_nll"] - figures["think_nll"]
        assert figures["information_gain"] == pytest.approx(gain)
        low, high = figures["information_gain_low"], figures["information_gain_high"]
        assert low < figures["information_gain"] < high
        assert figures["pass_at"]["1"] == pytest.approx(figures["think_accuracy"])
        assert figures["reward_pass_at"]["1"] == pytest.approx(figures["reward_share"])
        passing = list(figures["pass_at"].values())
        assert passing == sorted(passing)
    assert 3 < checkpoint["perplexity"] < 5  # the noise of the text alone is e ** 1.3


async def test_checkpoint_comparisons_are_paired(run: Path, tmp_path: Path) -> None:
    first = str(run / "checkpoints" / "step-000003")
    _, report = report_of(tmp_path / "a", str(base_model()), first, str(run))
    _, again = report_of(tmp_path / "b", str(base_model()), first, str(run))
    assert report == again
    _, swapped = report_of(tmp_path / "c", str(run), "--proxy", str(base_model()))
    assert swapped["checkpoints"][0] == report["checkpoints"][2]  # the same questions to all
    base, newest = report["checkpoints"][0], report["checkpoints"][2]
    for name, of in report["differences"][newest["label"]].items():
        for metric, pair in of.items():
            expected = newest["splits"][name][metric] - base["splits"][name][metric]
            assert pair["mean"] == pytest.approx(expected, abs=1e-9)
            assert pair["low"] <= pair["mean"] <= pair["high"]


async def test_a_series_gets_its_law(run: Path, tmp_path: Path) -> None:
    said, report = report_of(tmp_path, "--series", str(run), "--compute", "tokens")
    steps = [checkpoint["step"] for checkpoint in report["checkpoints"]]
    assert steps == [0, 3, 6, 9, 12, 15]
    compute = [checkpoint["compute"] for checkpoint in report["checkpoints"]]
    assert compute[0] == 0
    assert compute == sorted(set(compute))
    assert report["proxy"] == "rpt/base (the first checkpoint)"
    for laws in report["laws"].values():
        assert set(laws) == {"think_accuracy", "reward_share"}
        for law in laws.values():
            assert "reason" in law or (law["num_points"] == 5 and 0 <= law["limit"] <= 1)
    fitted = [laws["reward_share"] for laws in report["laws"].values() if "reason" not in laws]
    assert fitted
    assert "reward_share =" in said
    assert "/ C^" in said
