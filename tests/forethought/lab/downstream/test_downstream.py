"""Downstream evaluation: the harness knows every named task, ours grade correctly, metrics are averaged."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from forethought.compute.model import load_tokenizer
from forethought.errors import InvalidInput
from forethought.lab.demo.arms import base_model
from forethought.lab.demo.corpus import documents
from forethought.lab.downstream import harness
from forethought.lab.downstream.harness import (
    TASKS,
    Evaluated,
    HarnessOptions,
    adjusted,
    check_data,
    suite_of_tasks,
)
from forethought.lab.downstream.scores import report, scores_of, suite_mean, table
from forethought.lab.downstream.suites import SUITES, Suite, SuiteTask, suite
from tests import tiny

LM = pytest.importorskip("lm_eval.api.model").LM

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OURS = sorted(file for file in TASKS.glob("*.yaml"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variables would have it, which were read when the libraries were imported."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def manager() -> Any:
    """The harness's tasks, whose thousands of files take seconds to read, plus Forethought's."""
    return harness._manager(suite_of_tasks(["a task of the harness"]), HarnessOptions())


@pytest.mark.parametrize("name", SUITES)
def test_every_task_of_a_suite_is_known_to_the_harness(manager: Any, name: str) -> None:
    named = {scored.task for scored in suite(name).tasks}
    assert named <= set(manager.all_tasks)
    assert len(named) == len(suite(name).tasks)


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.stem)
def test_task_files_and_their_functions_resolve(manager: Any, file: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(file, resolve_func=True)
    name = config.get("task") if "group" not in config else config["group"]
    assert name == f"forethought_{file.stem}"
    assert manager.task_index[name].yaml_path == file
    assert "dataset_path" in config or "custom_dataset" in config or "group" in config


class Scripted(LM):
    """Returns scripted responses and records the requests."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.answers = answers
        self.prompts: list[str] = []
        self.generation: list[dict[str, Any]] = []

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        self.generation += [request.args[1] for request in requests]
        return self.answers[: len(requests)]

    def loglikelihood(self, requests: Any) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise NotImplementedError


def ask(
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    rows: list[dict[str, Any]],
    answers: list[str],
    asking: HarnessOptions,
    **overrides: Any,
) -> tuple[Any, dict[str, Any]]:
    """Evaluate one of Forethought's tasks on rows in its dataset's format, without a network."""
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    model = Scripted(answers)
    config = load_yaml(TASKS / f"{task.removeprefix('forethought_')}.yaml", resolve_func=True)
    data = {config["test_split"]: Dataset.from_list([row | {"opening": ""} for row in rows])}
    spec = config | {"custom_dataset": lambda **_: data}
    monkeypatch.setattr(harness, "_load_tasks", lambda manager, chosen: manager.load([spec]))
    monkeypatch.setattr(harness, "_load_model", lambda path, given: model)
    chosen = adjusted(suite_of_tasks([task]), **overrides)
    (results,) = harness.run_suite(Path(), chosen, asking).runs
    return model, results[task]


MATH_ROWS = [
    {"question": "Half of one?", "answer": "0.5"},
    {"question": "Two and two?", "answer": "4"},
    {"question": "The set of 1, 2?", "answer": r"\{1, 2\}"},
    {"question": "Six?", "answer": "6"},
]
MATH_ANSWERS = [
    r"It is \boxed{\frac{1}{2}}.",
    r"\boxed{4} or rather \boxed{5}",
    r"\boxed{\{2, 1\}}",
    "6, of course",
]


@pytest.mark.parametrize("task", ["forethought_amc23", "forethought_minerva"])
def test_mathematics_is_graded_by_the_last_box(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    pytest.importorskip("math_verify")
    model, found = ask(monkeypatch, task, MATH_ROWS, MATH_ANSWERS, HarnessOptions())
    assert found["math_verify,none"] == 0.5
    assert model.prompts[0].startswith("Half of one?\n\nReason step by step")
    assert model.generation[0]["do_sample"] is False


def test_supergpqa_letters_its_options_and_reads_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = {"question": "Which?", "options": list("wxyz"), "answer": "z", "answer_letter": "D"}
    said = ["Answer: A? No.\nAnswer: D", "the answer is (D).", "Answer: C", "D", "Answer: **D**"]
    model, found = ask(
        monkeypatch, "forethought_supergpqa", [row] * len(said), said, HarnessOptions()
    )
    assert found["exact_match,last-letter"] == pytest.approx(3 / 5)
    assert "Which?\n\nA) w\nB) x\nC) y\nD) z\n" in model.prompts[0]


def test_a_suites_settings_override_a_tasks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = ask(
        monkeypatch, "forethought_amc23", MATH_ROWS, MATH_ANSWERS, HarnessOptions(opens_thought=True),
        temperature=0.8, max_tokens=77,
    )  # fmt: skip
    assert all(prompt.endswith("\\boxed{}.<think>") for prompt in model.prompts)
    generation = model.generation[0]
    assert (generation["temperature"], generation["do_sample"]) == (0.8, True)
    assert generation["max_gen_toks"] == 77
    assert "<|im_end|>" in generation["until"]  # the rest stays the task's


def test_state_tracking_on_the_demos_base(tmp_path: Path) -> None:
    """The real model through the real harness, offline: a thought helps, and results are reproducible."""
    asking = HarnessOptions(batch_size=64, limit=128, opens_thought=False)
    evaluated = harness.run_suite(base_model(), suite("state-tracking"), asking)
    found = {score.task: score for score in scores_of(suite("state-tracking"), evaluated.runs)}
    plain, thought, greedy = (
        found[f"forethought_state_tracking_{kind}"].mean for kind in ("plain", "thought", "greedy")
    )
    assert 0.3 < plain < 0.55  # 0.44 over all 512; chance is 0.14
    assert plain < thought < greedy
    again = harness.run_suite(base_model(), suite("state-tracking"), asking)
    assert again == evaluated
    written = report("base", "state-tracking", suite("state-tracking"), asking, evaluated)
    read = json.loads(json.dumps(written))
    assert read["settings"]["limit"] == 128
    assert read["num_questions"]["forethought_state_tracking_plain"] == {
        "asked": 128,
        "in_data": 512,
    }
    assert read["mean"] is None
    assert {score["task"] for score in read["scores"]} == set(found)


def test_state_trackings_questions_are_of_the_held_out_split(manager: Any) -> None:
    loaded = manager.load(["forethought_state_tracking_thought"])
    (task,) = loaded["tasks"].values()
    rows = list(task.test_docs())
    heldout = {document.text for document in documents(2000, seed=0, heldout=True)}
    assert len(rows) == 512
    assert all(f"{row['question']} {row['answer']} ." in heldout for row in rows)


def test_runs_are_averaged_and_their_spread_is_reported() -> None:
    chosen = Suite((SuiteTask("a", "acc,none"), SuiteTask("b", "acc,none")), num_runs=2)
    runs = [
        {"a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": "N/A"}, "b": {"acc,none": 1.0}},
        {"a": {"alias": "a", "acc,none": 0.7, "acc_stderr,none": "N/A"}, "b": {"acc,none": 1.0}},
    ]
    scores = scores_of(chosen, runs)
    assert [(s.task, s.metric, s.counts) for s in scores] == [
        ("a", "acc,none", True),
        ("b", "acc,none", True),
    ]
    assert scores[0].mean == pytest.approx(0.6)
    assert scores[0].run_std == pytest.approx(math.sqrt(0.02))
    assert suite_mean(scores) == pytest.approx(0.8)
    assert table("t", chosen, Evaluated(runs, {"a": (5, 40), "b": (5, 40)})).row_count == 3


def test_one_run_has_the_harnesss_error_over_questions() -> None:
    (score,) = scores_of(
        suite_of_tasks(["a"]),
        [{"a": {"acc,none": 0.5, "acc_stderr,none": 0.05, "other,none": "x"}}],
    )
    assert (score.mean, score.stderr, score.run_std, score.counts) == (0.5, 0.05, None, False)
    assert suite_mean([score]) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nonsense"], "knows no task or group 'nonsense'"),
        (["forethought_amc23"], "data of a task cannot be loaded"),
    ],
)
def test_harness_errors_are_reported(
    manager: Any, monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
) -> None:
    if names == ["nonsense"]:  # its manager would be another of the same
        monkeypatch.setattr(harness, "_manager", lambda suite, options: manager)
    with pytest.raises(InvalidInput, match=message):
        harness.run_suite(base_model(), suite_of_tasks(names), HarnessOptions())


def test_a_model_without_markers_cannot_open_a_thought() -> None:
    asking = HarnessOptions(opens_thought=True, think_open="<ponder>")
    with pytest.raises(InvalidInput, match="has no tokens '<ponder>'"):
        harness.run_suite(base_model(), suite("state-tracking"), asking)


@pytest.mark.parametrize(
    ("think_close", "ends"),
    [("</think>", tiny.CLOSE_ID), ("\n\nAnswer:", "\n\nAnswer:")],
)
def test_a_close_marker_of_several_tokens_is_looked_for_as_text(
    think_close: str, ends: int | str, tmp_path: Path
) -> None:
    directory = tiny.build_model_directory(tmp_path)
    asking = HarnessOptions(opens_thought=True, think_close=think_close)
    assert harness._load_model(directory, asking).think_end_token == ends
    assert harness._load_model(directory, HarnessOptions()).think_end_token is None


@pytest.mark.parametrize("name", ["rlp-math", "state-tracking", "rpt"])
def test_one_file_is_not_taken_for_several_data_sets(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"--data is a\.jsonl, one file, and .* own; expected"):
        check_data(name, suite(name), "a.jsonl")
    check_data(name, suite(name), "")
    check_data("mmlu", suite("mmlu"), "mmlu.csv")


def test_a_zero_shot_task_is_asked_without_examples_from_its_own_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = ask(
        monkeypatch,
        "forethought_amc23",
        MATH_ROWS,
        MATH_ANSWERS,
        HarnessOptions(),
        num_fewshot=2,
    )
    assert [prompt.count("Reason step by step") for prompt in model.prompts] == [1] * 4


def test_answers_leave_room_for_their_prompts(caplog: pytest.LogCaptureFixture) -> None:
    """The harness fails in an assertion, and cuts the beginnings of prompts without a word."""
    chosen, asking = suite_of_tasks(["forethought_state_tracking_thought"]), HarnessOptions(limit=4)
    length = json.loads((base_model() / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(
        InvalidInput, match=f"the model takes {length:,} with their prompts; expected"
    ):
        harness.run_suite(base_model(), adjusted(chosen, max_tokens=length), asking)
    evaluated = harness.run_suite(base_model(), adjusted(chosen, max_tokens=length - 4), asking)
    assert len(evaluated.runs) == 1
    assert "4 of 4 prompts are longer than the 4 tokens" in caplog.text


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(InvalidInput, match="expected one of gsm8k, gsm8k-text, math"):
        suite("glue")


def test_prompts_begin_with_the_models_bos_once_and_have_no_end(tmp_path: Path) -> None:
    from tokenizers import processors

    directory = Path(shutil.copytree(base_model(), tmp_path / "model"))
    tokenizer = load_tokenizer(directory)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=special
    )
    tokenizer.save_pretrained(directory)
    model = harness._load_model(directory, HarnessOptions())
    bare = tokenizer("amber bear", add_special_tokens=False)["input_ids"]
    assert tokenizer("amber bear")["input_ids"] == [special[0][1], *bare, special[1][1]]
    for text in ("amber bear", "<s> amber bear"):
        assert list(model.tok_encode(text)) == [special[0][1], *bare]
