"""The questions of a benchmark, from a file in its data set's own columns or from the hub, checked.

    gsm8k           question, answer                    "...", "... #### 72"
    math, math500   problem, solution                   the answer is the last box of the solution
    amc23           question or problem, answer         a number
    minerva         question or problem, and answer, or the last box of a solution
    mmlu            question, subject, choices, answer  four choices; 0 to 3, or A to D

Design: the harness itself calls these functions (``custom_dataset`` in the task files) with a task's
metadata, so that ``forethought downstream --data FILE`` and ``lm_eval --metadata '{"data": "FILE"}'`` read
and check a file in the same way. Every question is checked before the first is asked. The price: one bad
record refuses its file.
"""

from __future__ import annotations

import logging
import re
from ast import literal_eval
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.errors import InvalidInput
from forethought.lab.downstream.data_files import Row, read_rows

log = logging.getLogger(__name__)

_LETTERS = ("A", "B", "C", "D")
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


class _Unfit(ValueError):
    """Why a record is no question of a benchmark."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set: its columns, its published number of test questions, and where the hub has it.

    ``hub``: (id, configuration) of the parts whose test splits together are the benchmark. ``question_of``
    turns a record into the columns that the task file uses.

    Example:
        ``BENCHMARKS["gsm8k"].num_published == 1319``
    """

    title: str
    columns: str
    num_published: int
    hub: tuple[tuple[str, str | None], ...]
    question_of: Callable[[Row], Row]


def gsm8k(**metadata: Any) -> dict[str, Any]:
    """The splits of GSM8K: ``test``, with ``question`` and ``answer``."""
    return _splits("gsm8k", **metadata)


def math(**metadata: Any) -> dict[str, Any]:
    """The splits of MATH: ``test``, with ``problem`` and ``solution``."""
    return _splits("math", **metadata)


def math500(**metadata: Any) -> dict[str, Any]:
    """The splits of MATH-500: as :func:`math`."""
    return _splits("math500", **metadata)


def amc23(**metadata: Any) -> dict[str, Any]:
    """The splits of AMC23: ``test``, with ``question`` and ``answer``."""
    return _splits("amc23", **metadata)


def minerva(**metadata: Any) -> dict[str, Any]:
    """The splits of Minerva's OpenCourseWare problems: as :func:`amc23`."""
    return _splits("minerva", **metadata)


def mmlu(**metadata: Any) -> dict[str, Any]:
    """The splits of MMLU: ``test``, with ``question``, ``subject``, ``choices`` and ``answer``."""
    return _splits("mmlu", **metadata)


def read_questions(name: str, path: Path) -> list[Row]:
    """The questions of a file, in order.

    Raises:
        InvalidInput: it cannot be read, has other columns, or a record is no question of this benchmark.
    """
    return _checked(BENCHMARKS[name], read_rows(path), f"data file {str(path)!r}")


def _splits(name: str, data: str = "", think_open: str = "", **_: Any) -> dict[str, Any]:
    """``think_open`` ends every prompt of a generative task (its ``gen_prefix``)."""
    from datasets import Dataset

    benchmark = BENCHMARKS[name]
    questions = read_questions(name, Path(data).expanduser()) if data else _of_hub(benchmark)
    if len(questions) != benchmark.num_published:
        log.warning(
            "%s: got %s questions; the published test set has %s",
            data or benchmark.hub[0][0],
            f"{len(questions):,}",
            f"{benchmark.num_published:,}",
        )
    return {"test": Dataset.from_list([row | {"opening": think_open} for row in questions])}


def _of_hub(benchmark: Benchmark) -> list[Row]:
    from datasets import load_dataset

    rows: list[Row] = []
    for path, configuration in benchmark.hub:
        rows += load_dataset(path, configuration, split="test")
    return _checked(benchmark, rows, f"{benchmark.hub[0][0]} on the hub")


def _checked(benchmark: Benchmark, rows: Sequence[Row], where: str) -> list[Row]:
    questions: list[Row] = []
    faults: list[tuple[int, str]] = []
    for number, row in enumerate(rows, start=1):
        try:
            questions.append(benchmark.question_of(row))
        except _Unfit as fault:
            faults.append((number, str(fault)))
    if faults:
        number, reason = faults[0]
        raise InvalidInput(
            f"{where} has the columns {', '.join(map(str, rows[number - 1]))}; expected those of "
            f"{benchmark.title}: {benchmark.columns}. {len(faults):,} of its {len(rows):,} records do not "
            f"fit, the first is record {number}: {reason}{_suggestion(rows[number - 1])}"
        )
    return questions


def _suggestion(row: Row) -> str:
    """The benchmarks that a record would be a question of."""
    fitting = []
    for name, benchmark in BENCHMARKS.items():
        try:
            benchmark.question_of(row)
        except _Unfit:
            continue
        fitting.append(name)
    return f"; it would fit --suite {' or '.join(fitting)}" if fitting else ""


def _text_of(row: Row, *columns: str) -> str:
    """The text in the first of these columns that a record has."""
    column = next((name for name in columns if row.get(name) is not None), None)
    if column is None:
        raise _Unfit(f"it has no {' or '.join(map(repr, columns))}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise _Unfit(f"{column!r} is {value!r:.40}; expected a text")
    return value


def _gsm8k(row: Row) -> Row:
    question, answer = _text_of(row, "question"), _text_of(row, "answer")
    if not answer.rpartition("#### ")[1]:
        raise _Unfit(f"'answer' is {answer!r:.40} without '#### ' before its final number")
    return {"question": question, "answer": answer}


def _math(row: Row) -> Row:
    problem, solution = _text_of(row, "problem"), _text_of(row, "solution")
    if "\\boxed " not in solution:  # a few of them, whose answer the harness finds as well
        _boxed_in(solution)
    return {"problem": problem, "solution": solution}


def _with_answer(row: Row) -> Row:
    question = _text_of(row, "question", "problem")
    answer = row.get("answer")
    if answer is None:
        return {"question": question, "answer": _boxed_in(_text_of(row, "answer", "solution"))}
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # 27.0, as the data set stores 27
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise _Unfit(f"'answer' is {answer!r:.40}; expected a number or a text")
    if not str(answer).strip():
        raise _Unfit("'answer' is empty")
    if "#### " in str(answer):
        raise _Unfit("'answer' is a worked solution; expected the final answer alone")
    return {"question": question, "answer": str(answer)}


def _boxed_in(solution: str) -> str:
    from forethought.objectives.parts.grading import TokenBytes, boxed

    found = boxed(TokenBytes((None,), (solution.encode(),)))
    if found is None:
        raise _Unfit(rf"'solution' is {solution!r:.40} without a \boxed{{}} answer")
    return found.text.decode()


def _mmlu(row: Row) -> Row:
    question, subject = _text_of(row, "question"), _text_of(row, "subject")
    choices = row.get("choices")
    if isinstance(choices, str):  # a CSV file holds a list as JSON, Python or numpy write it
        choices = [literal_eval(found) for found in _STRING.findall(choices)]
    if not isinstance(choices, list) or [type(choice) for choice in choices] != [str] * 4:
        raise _Unfit(f"'choices' is {row.get('choices')!r:.60}; expected a list of four texts")
    answer = str(row.get("answer")).strip()
    if answer in _LETTERS:
        answer = str(_LETTERS.index(answer))
    if answer not in ("0", "1", "2", "3"):
        raise _Unfit(f"'answer' is {row.get('answer')!r:.40}; expected 0 to 3, or A to D")
    return {"question": question, "subject": subject, "choices": choices, "answer": int(answer)}


_MATH_PARTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip

BENCHMARKS = {
    "gsm8k": Benchmark("GSM8K", "question, answer", 1319, (("openai/gsm8k", "main"),), _gsm8k),
    "math": Benchmark(
        "MATH",
        "problem, solution",
        5000,
        tuple(("EleutherAI/hendrycks_math", part) for part in _MATH_PARTS),
        _math,
    ),
    "math500": Benchmark(
        "MATH-500", "problem, solution", 500, (("HuggingFaceH4/MATH-500", None),), _math
    ),
    "amc23": Benchmark(
        "AMC23", "question or problem, answer", 40, (("math-ai/amc23", None),), _with_answer
    ),
    "minerva": Benchmark(
        "Minerva",
        "question or problem, answer or solution",
        272,
        (("math-ai/minervamath", None),),
        _with_answer,
    ),
    "mmlu": Benchmark(
        "MMLU", "question, subject, choices, answer", 14_042, (("cais/mmlu", "all"),), _mmlu
    ),
}
"""The benchmarks by name: of the suite, and of the task behind ``forethought_``."""
