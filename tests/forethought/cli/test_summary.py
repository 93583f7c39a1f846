"""The last lines of ``up``."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.cli.summary import closing_lines
from forethought.run.directory import RunDirectory


@pytest.mark.parametrize("failed", [False, True])
def test_a_model_is_offered_only_after_success(failed: bool, tmp_path: Path) -> None:
    """A replica refused to start, and the learner that was stopped for it wrote its untrained weights."""
    run = RunDirectory(tmp_path)
    latest = run.checkpoint(0)
    latest.mkdir(parents=True)
    lines = closing_lines(run, {"steps": 0}, stopped=False, failed=failed)
    assert f"{'checkpoint':<16} {latest}" in lines
    assert ("to load it:" in lines) is not failed
