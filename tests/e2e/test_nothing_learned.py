"""A model with one NaN weight through the real ``up``: reason, exit status, no restart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import PLAIN, write_corpus
from forethought.process import NOTHING_LEARNED
from forethought.run.directory import RunDirectory
from tests import tiny

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_a_model_with_a_nan_weight(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(base_model(), model, copy_function=shutil.copyfile)
    tiny.corrupt(model)
    corpus = write_corpus(
        tmp_path / "corpus", num_documents=200, seed=0, mixture=PLAIN, num_heldout=1
    ).train
    words = (
        f"model.path={model}", f"corpus.path={corpus}", "corpus.window_tokens=32",
        f"run.directory={tmp_path / 'run'}", "sampling.max_thought_tokens=9", "auth.open=true",
        "rollout.replicas=1", "reward.http_port=0", "learner.batch_tasks=2",
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "forethought.cli", "up", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == NOTHING_LEARNED, ended.stdout
    why = r"the policy gave task \d+ log-probs that are not finite"
    assert re.search(rf"\nwarning +trainer: task \d+ failed, the first .*: {why}", ended.stdout)
    assert re.search(
        rf"\nerror +trainer: nothing was learned .* the first reason: {why}", ended.stdout
    )
    assert re.search(rf"\nfailed +nothing was learned in the last 5 batches.*: {why}", ended.stdout)
    assert "100% of tasks fail" in ended.stdout
    assert "restart 1" not in ended.stdout
    assert "to load it" not in ended.stdout
    directory = RunDirectory(tmp_path / "run")
    assert directory.latest_checkpoint() == directory.checkpoint(5)
    assert directory.read_summary()["done"] is False
