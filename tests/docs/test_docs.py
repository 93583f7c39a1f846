"""The documentation tells the truth about what can be checked mechanically."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from forethought import objectives
from forethought.config import Settings
from forethought.objectives import Group
from forethought.types import Document, Thought, VersionSpan
from tests.repository import ROOT


def documented_keys() -> dict[str, set[str]]:
    sections: dict[str, set[str]] = {}
    current = ""
    for line in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"^## `\[(\w+)\]`$", line):
            current = heading[1]
            sections[current] = set()
        elif line.startswith("### "):
            current = ""
        elif current and (row := re.match(r"^\| `(\w+)` \|", line)):
            sections[current].add(row[1])
    return sections


def test_every_setting_is_documented_and_no_other() -> None:
    expected = {
        name: set(getattr(field.annotation, "model_fields"))  # noqa: B009
        for name, field in Settings.model_fields.items()
    }
    assert documented_keys() == expected


def test_documented_defaults_are_the_defaults() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    learner = text.split("## `[learner]`")[1].split("## ")[0]
    for key, default in re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", learner, re.M):
        assert str(getattr(Settings().learner, key)).lower() == default.strip('"').lower(), key


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_links_and_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    named = re.findall(
        r"`((?:forethought|services|trainer|tests|configs|docs|proto|benchmarks)/[\w./-]+)`", text
    )
    for target in links:
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for target in named:
        assert (ROOT / target).exists(), target


def test_the_documented_objective_loads_and_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "floored.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    objective = objectives.load("mypackage.floored", {"num_positions": 2})
    document = Document("d", "s", (1, 2, 3, 4, 5))
    assert len(objective.positions(document, Random(0))) == 2
    thought = Thought((7,), (-0.1,), (VersionSpan(0, 1),), closed=True)
    group = Group((3,), (thought, thought), (-0.5, -2.0), -1.0)
    assert objective.rewards(group) == (0.5, 0.0)
