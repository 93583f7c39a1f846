"""Where answers end: at their own first stop sequence outside of a thought."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.compute.model import load_tokenizer
from forethought.lab.demo.arms import base_model
from forethought.lab.downstream.markers import MarkerTexts

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(base_model())


def ends(
    tokenizer: Any, prompt: str, answers: list[str], markers: MarkerTexts | None
) -> list[int | None]:
    """Per answer, the number of its tokens after which it has ended."""
    from forethought.lab.downstream.answering import AnswerEnds

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    start, rows = ids(prompt), [ids(answer) for answer in answers]
    length = min(map(len, rows))
    prompts = torch.tensor([start] * len(rows))
    criterion = AnswerEnds(tokenizer, [".", ""], prompts, markers)
    found: list[int | None] = [None] * len(rows)
    for step in range(1, length + 1):
        ended = criterion(torch.tensor([start + row[:step] for row in rows]), None)
        for row, is_over in enumerate(ended.tolist()):
            if is_over and found[row] is None:
                found[row] = step
    return found


def test_every_answer_ends_at_its_own_first_stop(tokenizer: Any) -> None:
    answers = ["6 . 5 .", "6 5 . 4", "6 5 4 3"]
    assert ends(tokenizer, "amber bear =", answers, None) == [2, 3, None]


@pytest.mark.parametrize(
    "markers", [MarkerTexts("<think>", "</think>"), MarkerTexts("amber bear", "rest +4")]
)
def test_stops_inside_thoughts_do_not_count(tokenizer: Any, markers: MarkerTexts) -> None:
    """Whether the prompt opens the thought or the answer does, with markers of one token or two."""
    opens, closes = markers.think_open, markers.think_close
    answers = [f"2 . {closes} 5 . 4", f"2 . 3 . 4 {closes} . 5"]
    num_close = len(tokenizer(closes, add_special_tokens=False)["input_ids"])
    wanted = [2 + num_close + 2, 5 + num_close + 1]
    length = min(len(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in answers)
    found = ends(tokenizer, f"5 = {opens}", answers, markers)
    assert found == [step if step <= length else None for step in wanted]
    assert ends(tokenizer, "5 =", [f"{opens} {answers[0]}"], markers) == [num_close + wanted[0]]
    assert ends(tokenizer, "5 =", [answers[0]], markers) == [2]


def test_a_run_names_its_markers(tmp_path: Path) -> None:
    from forethought.lab.downstream.markers import markers_of
    from forethought.run.checkpoints import resolve

    model = tmp_path / "run/checkpoints/step-000004/model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    assert markers_of(resolve(tmp_path / "run")) == ("", "")
    (tmp_path / "run/config.toml").write_text(
        '[model]\nthink_open = "amber bear"\nthink_close = "rest"'
    )
    for path in (model, model.parent, tmp_path / "run"):
        assert markers_of(resolve(path)) == ("amber bear", "rest")
