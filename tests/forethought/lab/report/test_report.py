"""The report page for complete, partial, empty and hostile run directories, without network or script."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer
from typer.testing import CliRunner

from forethought.cli.report import report
from forethought.compute.model import load_language_model
from forethought.config import load_settings, write_resolved
from forethought.errors import InvalidInput
from forethought.lab.report import read_runs, write_page
from forethought.lab.report.curves import CURVES, ends, mean_phases, points, thinned
from forethought.lab.report.evaluation import evaluation_tables
from forethought.lab.report.facts import identity_rows, work_rows
from forethought.lab.report.settings import setting_rows
from forethought.run.directory import RunDirectory
from forethought.run.journal import Journal
from forethought.types import ScoredRollout
from tests.scored import make_results
from tests.tiny import build_model_directory, build_tokenizer

HOSTILE = "<script>alert(1)</script>&\"'"
NUM_STEPS = 60


def row(step: int, **values: Any) -> dict[str, Any]:
    return {
        "step": step, "time_unix_s": 1000.0 + 2 * step, "epoch": 1, "version": step,
        "tokens": 500 * step, "wait_s": 1.2, "step_s": 0.6, "reward_mean": step / 100,
        "information_gain": step / 50, "thought_tokens_mean": 6.0, "truncated_share": 0.0,
        "ratio_max": 1.0, "clipped_share": 0.0, **values,
    }  # fmt: skip


def write_metrics(root: Path, rows: list[dict[str, Any]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[ScoredRollout]:
    directory = build_model_directory(tmp_path_factory.mktemp("model") / "model")
    return make_results(load_language_model(directory, "float32", "cpu"))


@pytest.fixture(scope="module")
def run(results: list[ScoredRollout], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything that a run directory may contain."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    write_metrics(root, [row(step, truncated_share=0.4) for step in range(1, NUM_STEPS + 1)])
    words = [f"learner.steps={NUM_STEPS}", "run.seed=7", "learner.batch_tasks=3"]
    write_resolved(load_settings(None, [*words, f"run.directory={root}"], {}), root / "config.toml")
    replicas = {"rollout-a": {"kind": "rollout", "serving": {"policy": [1, NUM_STEPS]}}}
    counts = {"tasks_admitted": 1234, "tasks_trained": 1230, "tasks_failed": 4, "lost": 0}
    summary = {"steps": NUM_STEPS, "seconds": 125.0, "replicas": replicas, **counts}
    RunDirectory(root).write_summary(summary)
    build_model_directory(RunDirectory(root).checkpoint(NUM_STEPS) / "model")
    journal = Journal(root / "journal", epoch=1)
    journal.append(0, 1, results)
    split = {"gain": {"value": 0.5, "low": 0.4, "high": 0.6}, "think_accuracy": 0.875}
    (root / "eval.json").write_text(json.dumps({"checkpoints": [{"splits": {"easy": split}}]}))
    return root


class Page(HTMLParser):
    """The page as a browser parses it: texts, tags and everything that could be fetched or run."""

    VOID = frozenset({"meta", "path", "use", "rect", "img", "br", "line"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        assert not [key for key, _ in attrs if key.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


def page_of(paths: list[Path], out: Path) -> Page:
    write_page(read_runs(paths), out)
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(
        link.startswith("#") for link in page.links
    )  # markers of a figure, in the page itself
    assert not re.search(r"url\((?!#)|@import", html)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    return page


def test_a_whole_run(run: Path, tmp_path: Path) -> None:
    page = page_of([run], tmp_path / "report.html")
    for fragment in (
        "whole", "done", "60 of 60", "2m 5s", "1,234", "policy 60",  # identity and work
        "40% of thoughts hit their budget", "raise sampling.max_thought_tokens",  # alarm, remedy
        "learner.batch_tasks", "run.seed",  # settings
        "0.875", "0.500 [0.400, 0.600]", "easy",  # evaluation
        "batch 0", "d0, token 4", "step 60",  # samples and checkpoints
    ):  # fmt: skip
        assert fragment in page.text, fragment
    known = ("Reward", "Information gain", "Truncated thoughts", "Speed", "Step time")
    assert page.tags.count("svg") >= len(known)
    assert all(title in page.text for title in known)
    assert "Not recorded: Prediction, Next-token loss" in page.text
    assert "What is missing" not in page.text


def test_sample_thoughts_are_text_with_their_rewards(
    run: Path, results: list[ScoredRollout], tmp_path: Path
) -> None:
    page = page_of([run], tmp_path / "report.html")
    tokenizer = build_tokenizer()
    thoughts = results[0].rollout.thoughts_KG[0]
    for thought, reward in zip(thoughts, results[0].rewards_KG[0], strict=True):
        text = " ".join(tokenizer.decode(thought.token_ids_L).split())
        assert text in page.texts
        assert f"{reward:.3f}" in page.texts
    assert tokenizer.decode(results[0].rollout.task.positions_K[0].target_ids_H) in page.texts


def test_without_likelihoods_no_log_prob_is_shown(
    results: list[ScoredRollout], tmp_path: Path
) -> None:
    """RPT needs none; the 0 in their place is meaningless."""
    root = tmp_path / "rpt"
    write_metrics(root, [row(1)])
    bytes_alone = replace(results[0], policy_logprobs_KG=((),))
    Journal(root / "journal", epoch=1).append(0, 1, [bytes_alone])
    text = page_of([root], tmp_path / "report.html").text
    assert "batch 0" in text
    assert "log p" not in text


def test_a_run_that_learned_nothing_has_failed_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_metrics(root, [row(step, failed_share=1.0) for step in (1, 2, 3)])
    write_resolved(load_settings(None, ["learner.steps=3"], {}), root / "config.toml")
    summary = {"steps": 3, "done": False, "failure": "the replica has no memory", "tasks_failed": 9}
    RunDirectory(root).write_summary(summary)
    page = page_of([root], tmp_path / "report.html")
    for fragment in ("failed", "the replica has no memory", "100% of tasks fail", "Failed 9"):
        assert fragment in page.text, fragment
    app = typer.Typer()
    app.command()(report)
    said = CliRunner().invoke(app, [str(root)]).stdout
    assert "run: failed, 3 steps, alarms: failures\n  the replica has no memory\n" in said


def test_runs_are_side_by_side_and_differing_settings_marked(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_metrics(other, [row(step) for step in range(1, 4)])
    config = load_settings(None, ["learner.steps=9", "run.seed=7", "learner.batch_tasks=3"], {})
    write_resolved(config, other / "config.toml")
    RunDirectory(other).write_summary({"steps": 3, "seconds": 5.0})
    runs = read_runs([run, other])
    assert [record.status for record in runs] == ["done", "stopped"]
    rows = {setting.name: setting for setting in setting_rows(runs)}
    assert rows["learner.steps"].values == ("60", "9")
    assert rows["learner.steps"].differs
    assert not rows["run.seed"].differs
    assert rows["run.seed"].default == "0"
    assert "learner.loss" not in rows  # the default in both
    assert "run.directory" not in rows
    assert next(iter(rows.values())).differs  # those first
    page = page_of([run, other], tmp_path / "report.html")
    assert "2 runs side by side" in page.text
    identity = {fact.name: fact.values for fact in identity_rows(runs)}
    assert identity["Steps"] == ("60 of 60", "3 of 9")
    assert identity["Took"] == ("2m 5s", "5s")


def test_a_run_that_has_only_begun_lists_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    page = page_of([empty], tmp_path / "report.html")
    for fragment in (
        "config.toml is not there",
        "contains no step",
        "There is no checkpoint",
        "empty",
    ):
        assert fragment in page.text
    assert "svg" not in page.tags


def test_a_crashed_run_is_counted_by_its_journal(
    results: list[ScoredRollout], tmp_path: Path
) -> None:
    root = tmp_path / "crashed"
    write_metrics(root, [row(1)])
    with (root / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')  # torn
    failed = replace(results[1], error="out of memory", replica="reward-b")
    Journal(root / "journal", epoch=1).append(0, 1, [results[0], failed, results[2]])
    (record,) = read_runs([root])
    assert record.status == "ended without a summary"
    work = {fact.name: fact.values[0] for fact in work_rows([record])}
    assert (work["Admitted"], work["Trained"], work["Failed"], work["Lost"]) == ("3", "2", "1", "0")
    page = page_of([root], tmp_path / "report.html")
    assert "out of memory" in page.text
    assert "reward-b" in page.text


def test_a_summary_older_than_the_last_step_is_ignored(tmp_path: Path) -> None:
    """A stopped run that was resumed and then crashed."""
    root = tmp_path / "again"
    write_metrics(root, [row(step) for step in range(1, 9)])
    RunDirectory(root).write_summary({"steps": 5, "tasks_trained": 77, "seconds": 5.0})
    (record,) = read_runs([root])
    assert record.status == "ended without a summary"
    assert "77" not in str(work_rows([record]))
    identity = {fact.name: fact.values[0] for fact in identity_rows([record])}
    assert identity["Took"] == "14s from first to last step"


def test_a_run_that_is_owned_is_running_and_stays_owned(tmp_path: Path) -> None:
    root = tmp_path / "alive"
    write_metrics(root, [row(1)])
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(root / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        (alive,) = read_runs([root])
        assert alive.status == "running"
        assert not any("summary" in sentence for sentence in alive.missing)  # it is yet to come
        child.communicate()
    assert read_runs([root])[0].status == "ended without a summary"
    with (root / "lock").open() as file:  # and asking left it free
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_data_is_never_markup(results: list[ScoredRollout], tmp_path: Path) -> None:
    root = tmp_path / "<b>evil"
    write_metrics(root, [row(1, reward_mean=HOSTILE, epoch=HOSTILE), row(2, **{HOSTILE: 1})])
    config = {"objective": {"name": HOSTILE, "parameters": {HOSTILE: HOSTILE}}, "run": HOSTILE}
    (root / "config.toml").write_text(tomli_w.dumps(config))
    serving = {HOSTILE: [HOSTILE, HOSTILE]}
    replicas = {HOSTILE: {"kind": HOSTILE, "serving": serving}}
    (root / "summary.json").write_text(json.dumps({"steps": HOSTILE, "replicas": replicas}))
    (root / "eval.json").write_text(json.dumps({HOSTILE: {"splits": {HOSTILE: {HOSTILE: 0.5}}}}))
    task = results[0].rollout.task
    evil = replace(task, document=replace(task.document, document_id=HOSTILE))
    rollout = replace(results[0].rollout, task=evil, replica=HOSTILE)
    failed = replace(results[1], error=HOSTILE)
    Journal(root / "journal", epoch=1).append(0, 1, [replace(results[0], rollout=rollout), failed])
    page = page_of([root], tmp_path / "report.html")
    assert page.text.count("alert(1)") >= 6
    assert "<b>evil" in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", b"[half"),
        ("config.toml", b"\xff\xfe"),
        ("summary.json", b"{"),
        ("summary.json", b"[]"),
        ("metrics.jsonl", b'{"step": 1}\n\x00\x00\n{"step": 2}\n'),
        ("metrics.jsonl", b"[]\n7\n"),
        ("eval.json", b"nonsense"),
        ("journal/epoch-0001-batch-000000.zst", b"\x00\x00\x00\x00\x04\x00\x00\x00junk"),
        ("checkpoints/step-000003/model/tokenizer.json", b"{}"),
    ],
)
def test_a_damaged_file_is_reported_and_the_rest_is_shown(
    name: str, content: bytes, tmp_path: Path
) -> None:
    root = tmp_path / "damaged"
    write_metrics(root, [row(1), row(2)])
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    page = page_of([root], tmp_path / "report.html")
    assert "What is missing" in page.text
    if name.startswith("journal"):
        assert "The journal cannot be read" in page.text
    elif name.startswith("checkpoints"):
        assert "step 3" in page.text
    else:
        assert f"{Path(name).name}" in page.text.lower()
    if "metrics" not in name:
        assert "Reward" in page.text


def test_next_token_runs_have_no_journal_and_need_none(tmp_path: Path) -> None:
    root = tmp_path / "cpt"
    rows = [{"step": s, "time_unix_s": float(s), "nll": 2.0 / s, "tokens": s} for s in range(1, 9)]
    write_metrics(root, rows)
    (record,) = read_runs([root])
    assert record.review.problems == []
    page = page_of([root], tmp_path / "report.html")
    assert "Next-token loss" in page.text
    assert "Flow of work" not in page.text


def test_derived_curves_by_hand() -> None:
    rows = [row(1), row(2), row(4, time_unix_s=1010.0), row(5, time_unix_s=5000.0, epoch=2)]
    assert points(rows, "seconds_per_step") == ([2.0, 4.0], [2.0, 6.0])  # not over the restart
    assert points(rows, "tokens_per_s") == ([2.0, 4.0], [250.0, 1000 / 6])
    assert mean_phases([row(1, wait_s=99.0), row(2), row(3)]) == pytest.approx(
        {"waiting for thoughts": 1.2, "learning": 0.6, "the rest": 0.2}
    )
    assert mean_phases([row(1)]) == {}
    assert points([row(1, reward_mean=None), row(2, reward_mean="x")], "reward_mean") == ([], [])


def test_long_series_are_thinned_to_means() -> None:
    steps, values = thinned(([float(i) for i in range(10)], [1.0, 3.0] * 5), most=5)
    assert steps == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert values == [2.0] * 5
    assert ends([1.0] * 10 + [3.0] * 10) == (1.0, 3.0)
    assert ends([]) is None


def test_every_curve_draws_and_is_distinct() -> None:
    keys = [key for curve in CURVES for key in curve.keys]
    assert len(keys) == len(set(keys))
    assert all(curve.title and curve.note for curve in CURVES)


def test_evaluations_of_several_shapes() -> None:
    (table,) = evaluation_tables({"splits": [{"name": "hard", "a": 1, "b": {"mean": 2.5}}]})
    assert table.columns == ("hard",)
    assert table.rows == (("a", ("1",)), ("b", ("2.500",)))
    nested = {"checkpoints": {"step-3": {"splits": {"x": {"pass": {"1": 0.25}, "why": "text"}}}}}
    (table,) = evaluation_tables(nested)
    assert (table.title, table.columns, table.rows) == (
        "step-3", ("x",), (("pass 1", ("0.250",)),)
    )  # fmt: skip
    ends = {"gain": 0.5, "gain_low": 0.25, "gain_high": 0.75, "num_positions": 512}
    (table,) = evaluation_tables({"checkpoints": [{"label": "a/step-3", "splits": {"x": ends}}]})
    assert table.title == "a/step-3"
    assert table.rows == (("gain", ("0.500 [0.250, 0.750]",)), ("num_positions", ("512",)))
    assert evaluation_tables({"splits": {"x": {"why": "text"}}, "other": [1, None]}) == []


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(report)
    return app


def test_the_command_prints_the_path_of_the_page(
    run: Path, tmp_path: Path, app: typer.Typer
) -> None:
    out = tmp_path / "deep" / "page.html"
    done = CliRunner().invoke(app, [str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"report  {out}" in done.output
    assert "whole: done, 60 steps, alarms: truncation" in done.output
    assert out.stat().st_size > 10_000


def test_the_page_of_one_run_goes_into_its_directory(tmp_path: Path, app: typer.Typer) -> None:
    root = tmp_path / "one"
    write_metrics(root, [row(1)])
    done = CliRunner().invoke(app, [str(root)])
    assert (root / "report.html").exists()
    assert "summary.json is not there" in done.output


def test_a_folder_without_a_run_is_refused(tmp_path: Path, app: typer.Typer) -> None:
    """And nothing is written into it."""
    (tmp_path / "notes.txt").touch()
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert done.exit_code != 0
    assert "holds no file of a run" in str(done.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_path_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere is not a directory; expected a run directory"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "config.toml").touch()
    with pytest.raises(InvalidInput, match="given twice"):
        read_runs([tmp_path, tmp_path / ".." / tmp_path.name])
    roots = [tmp_path / str(i) for i in range(9)]
    for root in roots:
        write_metrics(root, [row(1)])
    with pytest.raises(InvalidInput, match="got 9 runs; expected at most 8"):
        write_page(read_runs(roots), tmp_path / "report.html")


def test_directories_of_one_name_get_distinct_labels(tmp_path: Path) -> None:
    roots = [tmp_path / name / "rlp" for name in ("a", "b")]
    for root in roots:
        write_metrics(root, [row(1)])
    assert [record.label for record in read_runs(roots)] == ["a/rlp", "b/rlp"]
