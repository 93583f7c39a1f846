"""``doctor`` on models: which tokens the think markers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.cli.doctor import Check, Level, configuration_checks
from tests import tiny

TEXT = ('model.think_open="<thought>"', 'model.think_close=" so:"')


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny.build_model_directory(tmp_path)


def checks_of(directory: Path, *words: str) -> dict[str, Check]:
    sizes = ("corpus.window_tokens=24", "sampling.max_thought_tokens=8")
    given = (f"model.path={directory}", *sizes, *words)
    checks = configuration_checks(None, given)
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "markers token 257 and token 258, no BOS"),
        (TEXT[1:], "markers token 257 and ordinary text of 4 tokens ["),
        (TEXT, "markers ordinary text of 9 tokens ["),
        ((*TEXT, "model.add_think_tokens=true"), "its think markers will be added"),
    ],
)
def test_doctor_names_the_form_of_the_markers(
    directory: Path, words: tuple[str, ...], says: str
) -> None:
    model = checks_of(directory, *words)["model"]
    assert model.level is Level.OK
    assert says in model.found


def test_a_close_marker_that_exceeds_the_budget_is_refused(directory: Path) -> None:
    checks = checks_of(directory, *TEXT, "sampling.max_thought_tokens=3")
    assert checks["passes"].level is Level.FAIL
    assert "is 4 tokens, sampling.max_thought_tokens 3: no thought could close" in (
        checks["passes"].found
    )
