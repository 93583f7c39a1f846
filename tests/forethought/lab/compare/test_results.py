"""From outcomes to rows: costs, intervals over seeds, paired differences, table and figure."""

from __future__ import annotations

import json
import re
from io import StringIO
from math import sqrt
from pathlib import Path

import pytest
from rich.console import Console

from forethought.lab.compare.figure import draw_comparison
from forethought.lab.compare.plan import ComparisonPlan
from forethought.lab.compare.results import (
    FIGURES,
    Results,
    results_of,
    value,
    write_results,
)
from forethought.lab.compare.schedule import TrialOutcome
from forethought.lab.compare.table import tables_of
from forethought.lab.compare.trial import Trial
from forethought.lab.statistics import seed_interval
from forethought.run.cost import Cost, cost_of

PLAN = ComparisonPlan.model_validate(
    {
        "name": "mine",
        "directory": "runs/mine",
        "reference": "rlp",
        "bases": [{"name": "late", "model": "demo"}],
        "arms": [
            {"name": "base"},
            {"name": "rlp", "label": "RLP", "settings": {"learner": {"steps": 1}}},
            {"name": "rpt", "settings": {"learner": {"steps": 1}}},
        ],
        "evaluation": {"corpus": "heldout.jsonl"},
    }
)


def outcome(arm: str, seed: int, accuracy: float, cost: Cost | None = None) -> TrialOutcome:
    figures = dict.fromkeys(FIGURES, 0.5) | {"think_accuracy": accuracy}
    places = {"num_parameters": 10, "answers": figures, "elsewhere": figures}
    return TrialOutcome(Trial("late", arm, seed), places, cost or Cost(), seconds=2.0)


WITH_STAGES = ComparisonPlan.model_validate(
    PLAN.model_dump()
    | {
        "stages": [{"name": "rlvr", "settings": {}}],
        "downstream": [{"suite": "gsm8k", "data": "gsm8k.jsonl"}],
    }
)


def with_benchmarks(arm: str, stage: str, seed: int, plain: float, think: float) -> TrialOutcome:
    figures = dict.fromkeys(FIGURES, 0.25)
    found = {
        "plain": {"accuracy": plain, "stderr": 0.02},
        "think": {"accuracy": think, "stderr": 0.04},
    }
    places = {"num_parameters": 10, "answers": figures, "downstream": {"gsm8k": found}}
    return TrialOutcome(Trial("late", arm, seed, stage), places)


def shown(results: Results) -> str:
    console = Console(width=200, file=StringIO())
    console.print(tables_of(results))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


OUTCOMES = [
    outcome("base", 0, 0.6),
    *(outcome("rlp", seed, 0.9 + seed / 100, Cost(30, 40, 50)) for seed in (0, 1, 2)),
    *(outcome("rpt", seed, 0.8 + seed / 100) for seed in (0, 1)),
    TrialOutcome(Trial("late", "rpt", 2), error="run of late/rpt/seed-2 exited with status 1"),
]


def test_costs_are_computed_from_the_metrics() -> None:
    rows = [
        {"sampled_tokens": 10, "scored_tokens": 12, "tokens": 11},
        {"sampled_tokens": 20, "scored_tokens": 4, "tokens": 31},
    ]
    cost = cost_of(rows)
    assert cost == Cost(30, 16, 31)
    assert cost.to_dict(5) == {
        "sampled_tokens": 30,
        "scored_tokens": 16,
        "learned_tokens": 31,
        "tokens": 61,
        "flops": 5 * (2 * 46 + 6 * 31),
    }
    assert cost_of([]) == Cost()
    assert cost_of([{"tokens": 7}]).tokens_to_learn_for_flops == 7


def test_an_interval_is_students() -> None:
    found = seed_interval([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    deviation = sqrt(sum((x - 7 / 3) ** 2 for x in (1, 2, 4)) / 2)
    assert found.half_width == pytest.approx(4.302653 * deviation / sqrt(3), rel=1e-6)
    assert f"{found:.1f}" == "2.3 ± 3.8"
    assert seed_interval([0.25]).half_width is None
    assert f"{seed_interval([0.25]):.2f}" == "0.25"


def test_rows_have_means_differences_and_failures() -> None:
    rows = {row["arm"]: row for row in results_of(PLAN, OUTCOMES)["rows"]}
    rlp, rpt, base = (value(rows[arm], "think_accuracy") for arm in ("rlp", "rpt", "base"))
    assert rlp is not None
    assert rpt is not None
    assert base is not None
    assert (rlp.mean, rlp.num_values) == (pytest.approx(0.91), 3)
    assert (rpt.mean, rpt.num_values, rows["rpt"]["num_failed"]) == (pytest.approx(0.805), 2, 1)
    assert base.half_width is None
    paired = rows["rpt"]["minus_reference"]["think_accuracy"]
    assert paired["mean"] == pytest.approx(-0.1)
    assert paired["half_width"] == pytest.approx(0.0, abs=1e-9)  # what seeds share falls out
    assert value(rows["rlp"], "flops").mean == 10 * (2 * 70 + 6 * 50)  # type: ignore[union-attr]
    assert value(rows["rlp"], "tokens").mean == 80  # type: ignore[union-attr]


def test_results_are_written_tabled_and_drawn(tmp_path: Path) -> None:
    results = results_of(PLAN, OUTCOMES)
    write_results(results, tmp_path / "compare.json")
    read = json.loads((tmp_path / "compare.json").read_text())
    assert read["trials"][-1]["error"].endswith("status 1")
    draw_comparison(read, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    console = Console(width=200, file=StringIO())
    console.print(tables_of(read))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "RLP" in text
    assert "0.910 ± 0.025" in text
    assert "from late" in text


def test_benchmarks_and_what_remains_after_the_stages_are_shown(tmp_path: Path) -> None:
    outcomes = [
        *(with_benchmarks("rlp", "", seed, 0.1, 0.3 + seed / 50) for seed in (0, 1)),
        *(with_benchmarks("rlp", "rlvr", seed, 0.5, 0.75) for seed in (0, 1)),
        *(with_benchmarks("base", stage, 0, 0.125, 0.375) for stage in ("", "rlvr")),
    ]
    results = results_of(WITH_STAGES, outcomes)
    rows = {(row["arm"], row["stage"]): row for row in results["rows"]}
    paired = rows["base", ""]["minus_reference"]
    assert paired["downstream_gsm8k_think"]["mean"] == pytest.approx(0.375 - 0.3)
    assert not any("stderr" in name for name in paired)
    text = shown(json.loads(json.dumps(results)))
    by_stage = text[text.index("by stage") :]
    assert re.search(r"arm +┃ +before +┃ +after rlvr", by_stage)
    behind = by_stage[by_stage.index("from late: gsm8k think") :]
    assert re.search(r"base +│ +0\.375 \(0\.040\) +│ +0\.375 \(0\.040\)", behind)
    assert re.search(r"RLP +│ +0\.310 ± 0\.127 \(0\.040\) +│ +0\.750 ± 0\.000 \(0\.040\)", behind)
    assert re.search(r"rpt +│ +failed +│ +failed", behind)
    draw_comparison(results, tmp_path / "compare.png")
    width = int.from_bytes((tmp_path / "compare.png").read_bytes()[16:20], "big")
    draw_comparison(results_of(PLAN, OUTCOMES), tmp_path / "compare.png")
    without = int.from_bytes((tmp_path / "compare.png").read_bytes()[16:20], "big")
    assert width == pytest.approx(without * 5 / 3, rel=0.01)  # two more panels


def test_no_number_is_cut_or_broken_at_80_columns() -> None:
    """Cells fold between a mean and its interval; an ellipsis would hide numbers."""
    texts = []
    for width in (80, 200):
        console = Console(width=width, file=StringIO())
        console.print(tables_of(results_of(PLAN, OUTCOMES)))
        texts.append(console.file.getvalue())  # type: ignore[attr-defined]
    narrow, wide = (sorted(re.findall(r"\d[\d.e+M]*", text)) for text in texts)
    assert narrow == wide
    assert "…" not in texts[0]


def test_an_arm_without_results_is_shown_as_failed(tmp_path: Path) -> None:
    results = results_of(PLAN, [o for o in OUTCOMES if o.trial.arm != "rpt"])
    console = Console(width=200, file=StringIO())
    console.print(tables_of(results))
    assert "failed" in console.file.getvalue()  # type: ignore[attr-defined]
    draw_comparison(results, tmp_path / "compare.png")
