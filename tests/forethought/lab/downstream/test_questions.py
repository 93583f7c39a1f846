"""Questions of local files: every format of every data set, and what is said of another file."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import InvalidInput
from forethought.lab.downstream import questions
from forethought.lab.downstream.questions import BENCHMARKS, read_questions
from forethought.lab.downstream.suites import SUITES, benchmark_of

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GSM8K = [
    {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4", "idx": 0},
    {"question": "Ten “thousand”,\nor so?", "answer": "Yes.\n#### 10,000", "idx": 1},
]
MMLU = [
    {
        "question": "Which?",
        "subject": "high_school_physics",
        "choices": ["it's", 'a "b"', "c, d\n", "\\d"],
        "answer": 2,
    }
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format of the file's suffix, as ``datasets`` writes it."""
    from datasets import Dataset

    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".jsonl":
        path.write_text(lines, encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.csv", "a.tsv"])
def test_every_format_holds_the_same_questions(tmp_path: Path, name: str) -> None:
    wanted = [{key: row[key] for key in ("question", "answer")} for row in GSM8K]
    assert read_questions("gsm8k", written(tmp_path / name, GSM8K)) == wanted
    assert read_questions("mmlu", written(tmp_path / name, MMLU)) == MMLU


@pytest.mark.parametrize(
    "choices", ["['a' 'b'\n 'c' 'd']", "['a', 'b', 'c', 'd']", '["a", "b", "c", "d"]']
)
def test_a_list_in_a_csv_file_is_read_as_numpy_python_or_json_write_it(
    tmp_path: Path, choices: str
) -> None:
    file = written(tmp_path / "a.csv", [MMLU[0] | {"choices": choices, "answer": "D"}])
    (question,) = read_questions("mmlu", file)
    assert (question["choices"], question["answer"]) == (list("abcd"), 3)


def test_answers_of_mathematics_are_found_where_a_data_set_has_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "p", "answer": 27.0},
        {"question": "p", "answer": 0.5},
        {"problem": "p", "answer": r"\frac{1}{2}", "url": "u"},
        {"problem": "p", "solution": r"so \boxed{x} and \boxed{\{1\}}."},
    ]
    for name in ("amc23", "minerva"):
        found = read_questions(name, written(tmp_path / "a.jsonl", rows))
        assert [row["question"] for row in found] == ["p"] * 4
        assert [row["answer"] for row in found] == ["27", "0.5", r"\frac{1}{2}", r"\{1\}"]
    of_math = [rows[3], {"problem": "p", "solution": r"$\boxed 3$", "answer": "3", "level": 2}]
    assert len(read_questions("math500", written(tmp_path / "a.jsonl", of_math))) == 2


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        (
            "gsm8k",
            [{"problem": "p", "solution": r"\boxed{1}"}],
            "has the columns problem, solution; expected those of GSM8K: question, answer. 1 of its 1 "
            "records do not fit, the first is record 1: it has no 'question'; it would fit --suite math or",
        ),
        ("gsm8k", [GSM8K[0], {"question": "q", "answer": "4"}], "the first is record 2: 'answer' is '4'"),
        ("gsm8k", [{"question": " ", "answer": "#### 4"}], "'question' is ' '; expected a text"),
        ("math", [{"problem": "p", "solution": "3"}], "without a "),
        ("amc23", GSM8K, "is a worked solution; expected the final answer alone; .* --suite gsm8k"),
        ("amc23", [{"question": "q", "answer": True}], "'answer' is True; expected a number"),
        ("mmlu", [MMLU[0] | {"choices": ["a", "b"]}], "expected a list of four texts"),
        ("mmlu", [MMLU[0] | {"answer": 4}], "'answer' is 4; expected 0 to 3, or A to D"),
        ("mmlu", [{"question": "q", "A": "1", "answer": "A"}], "it has no 'subject'"),
    ],
)  # fmt: skip
def test_another_format_is_named_with_what_was_expected(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_questions(name, written(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "holds no questions; expected at least one"),
        ("a.jsonl", b'{"question": "q"\n', "line 1 is not JSON"),
        ("a.json", b'[{"question": "q"},', "is not JSON"),
        ("a.jsonl", b'"question"\n', "holds a JSON str; expected objects"),
        ("a.jsonl", b"\xff\xfe", "is not UTF-8 at byte 0"),
        ("a.csv", b"question,answer\na,b,c\n", "record 1 has more values than the header"),
        ("a.parquet", b"PAR1", "is not a whole, readable Parquet file"),
        ("a.jsonl.gz", b"no gzip", "cannot be read or decompressed"),
        ("a.txt", b"q", r"ends in \.txt; expected \.jsonl, \.json"),
        ("folder", None, "is a folder; expected one file"),
        ("none.jsonl", None, "does not exist; expected one file"),
    ],
)
def test_a_damaged_file_is_refused_in_words(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        read_questions("gsm8k", tmp_path / name)


def test_another_number_of_questions_than_published_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path / "a.jsonl", GSM8K)
    with caplog.at_level(logging.WARNING):
        splits = questions.gsm8k(data=str(file), pretrained="a model", version=3.0)
    assert len(splits["test"]) == 2
    assert "got 2 questions; the published test set has 1,319" in caplog.text


def test_the_names_of_benchmarks_suites_and_tasks_agree() -> None:
    assert set(BENCHMARKS) <= set(SUITES)
    for name in BENCHMARKS:
        assert {benchmark_of(scored.task) for scored in SUITES[name].tasks} == {name}
        assert callable(getattr(questions, name))
    assert benchmark_of("forethought_math500") == "math500"
    assert benchmark_of("gsm8k") is None


def settings_of(file: Path, *left_out: str) -> dict[str, Any]:
    """A task file's settings, functions by name."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = {}
    for key, value in load_yaml(file, resolve_func=False).items():
        is_function = isinstance(value, str) and "utils." in value
        if key not in ("task", *left_out) and value is not None:
            found[key] = value.rpartition(".")[2] if is_function else value
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("gsm8k", "gsm8k/gsm8k-cot-zeroshot.yaml"),
        ("math500", "minerva_math/minerva_math500.yaml"),
        ("math", "minerva_math/minerva_math_algebra.yaml"),
        ("mmlu", "mmlu/default/mmlu_high_school_physics.yaml"),
        ("mmlu_generative", "mmlu/generative/mmlu_high_school_physics.yaml"),
    ],
)
def test_prompts_and_grading_are_the_harnesss(ours: str, theirs: str) -> None:
    """All settings of a task, except where its data is, its examples, and how a thought is opened."""
    import lm_eval
    from lm_eval.utils import apply_template

    from forethought.lab.downstream.harness import TASKS

    of_thoughts = ("gen_prefix", "target_delimiter")
    mine = settings_of(
        TASKS / f"{ours}.yaml", "custom_dataset", "fewshot_config", "num_fewshot", *of_thoughts
    )
    of_data = ("tag", "task_alias", "dataset_path", "dataset_name", "training_split")
    wanted = settings_of(
        Path(lm_eval.__file__).parent / "tasks" / theirs,
        *("fewshot_config", "num_fewshot", "fewshot_split", *of_data),
    )
    if "description" in mine:
        mine["description"] = apply_template(mine["description"], MMLU[0])
    assert mine == wanted
