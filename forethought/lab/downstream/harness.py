"""Runs lm-evaluation-harness on a checkpoint: the model is loaded once and evaluated in several runs.

Design: tasks are loaded and evaluated by the harness's own functions, with a different seed per run, so
that pass@1 over n runs works for every task, including those that only use their first answer. Where the
prompt opens a thought, or the chat template may do so, everything up to the last close marker is removed
before the answer is extracted; a thought that does not close is kept, and a task may extract an answer
from it. The price of several runs: documents are prepared again for each.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forethought.errors import InvalidInput
from forethought.lab.downstream.markers import DEFAULT_MARKERS, MarkerTexts
from forethought.lab.downstream.suites import Suite, SuiteTask, benchmark_of
from forethought.special_tokens import drop_eos

TASKS = Path(__file__).parent / "tasks"
"""Forethought's tasks, for ``lm_eval --include_path``."""

_PREFIX = "forethought_"
log = logging.getLogger(__name__)

Results = dict[str, dict[str, Any]]
"""One run's metrics in the harness's format: ``{task: {"metric,filter": value}}``, groups included."""


@dataclass(frozen=True, slots=True)
class HarnessOptions:
    """How a model is evaluated. ``limit`` is the maximum number of questions per task; ``opens_thought``
    appends the think-open marker to every prompt of a generative task that does not end with it; ``data``
    is the file of the questions, empty for those of the hub. Empty markers are ``<think>`` and
    ``</think>``.

    Example:
        ``HarnessOptions(batch_size=16, limit=100, opens_thought=True, data="gsm8k-test.jsonl")``
    """

    batch_size: int = 8
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "auto"
    opens_thought: bool = False
    chat: bool = False
    think_open: str = ""
    think_close: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The results of every run, in order, and per task the number of questions (asked, in its data).

    Example:
        ``Evaluated([{"gsm8k": {"exact_match,none": 0.5}}], {"gsm8k": (50, 1319)})``
    """

    runs: list[Results]
    num_questions: dict[str, tuple[int, int]]


def check_installed() -> None:
    """Check that the harness is installed.

    Raises:
        InvalidInput: lm_eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InvalidInput(
            "lm-evaluation-harness is not installed; expected `pip install 'forethought[downstream]'`"
        )


def suite_of_tasks(names: Sequence[str]) -> Suite:
    """A suite of the named tasks or groups, each with all its metrics."""
    return Suite(tuple(SuiteTask(name, "") for name in names), has_mean=False)


def check_data(name: str, suite: Suite, data: str) -> None:
    """Check that one file can hold the questions of a suite.

    Raises:
        InvalidInput: its tasks have data sets of their own, or several.
    """
    from forethought.lab.downstream.questions import BENCHMARKS

    benchmarks = {benchmark_of(scored.task) for scored in suite.tasks}
    if data and (len(benchmarks) > 1 or None in benchmarks):
        raise InvalidInput(
            f"--data is {data}, one file, and {name} reads data sets of its own; expected one of --suite "
            f"gsm8k, gsm8k-text, math, math500, amc23, minerva, mmlu, or tasks forethought_NAME of one of "
            f"{', '.join(BENCHMARKS)}"
        )


def run_suite(model: Path, suite: Suite, options: HarnessOptions) -> Evaluated:
    """Evaluate a model. Blocking, for minutes to days; progress goes to stderr.

    Raises:
        InvalidInput: the harness is missing, does not know a task, or cannot load its data.
    """
    check_installed()
    from lm_eval import evaluator

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = _load_tasks(_manager(suite, options), suite)
    for task in loaded["tasks"].values():
        _configure(task, suite, options)
    language_model = _load_model(model, options)
    runs: list[Results] = []
    counts: dict[str, dict[str, int]] = {}
    for run in range(suite.num_runs):
        _seed(options.seed + run)
        found = evaluator.evaluate(
            language_model,
            loaded,
            limit=options.limit,
            bootstrap_iters=0 if suite.num_runs > 1 else 1000,
            log_samples=False,
            apply_chat_template=options.chat,
        )
        runs.append(dict(found["results"]))
        counts = found["n-samples"]
    asked = {task: (count["effective"], count["original"]) for task, count in counts.items()}
    return Evaluated(runs, asked)


def _manager(suite: Suite, options: HarnessOptions) -> Any:
    from lm_eval.tasks import TaskManager

    # Loading the harness's thousands of task files takes seconds; Forethought's tasks do not need them.
    only_added = all(scored.task.startswith(_PREFIX) for scored in suite.tasks)
    metadata = {"data": options.data} if options.data else {}
    return TaskManager(include_path=str(TASKS), include_defaults=not only_added, metadata=metadata)


def _load_tasks(manager: Any, suite: Suite) -> dict[str, Any]:
    known = set(manager.all_tasks)
    for name in (scored.task for scored in suite.tasks):
        if name not in known:
            raise InvalidInput(
                f"lm-evaluation-harness knows no task or group {name!r}; `lm_eval ls tasks --include_path "
                f"{TASKS}` lists them"
            )
    try:
        loaded: dict[str, Any] = manager.load([scored.task for scored in suite.tasks])
    except InvalidInput:  # a file's own fault
        raise
    except (OSError, ValueError) as error:  # no network, a gated dataset, an unknown split
        raise InvalidInput(
            f"the data of a task cannot be loaded ({error}); expected network access, a populated cache "
            "(HF_HOME) or a local file (--data), and for gated datasets such as GPQA a login: "
            "`hf auth login`"
        ) from error
    return loaded


def _configure(task: Any, suite: Suite, options: HarnessOptions) -> None:
    """Override a task's settings with the suite's, as the harness's command line does."""
    task.set_fewshot_seed(seed=options.seed)
    if suite.num_fewshot is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=suite.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    if task.get_config("output_type") != "generate_until":
        return
    if overrides := _generation(suite):
        task.set_config(key="generation_kwargs", value=overrides, update=True)
    if options.opens_thought and not _opens_itself(task):
        task.set_config(key="gen_prefix", value=options.think_open or DEFAULT_MARKERS.think_open)
        task.set_config(key="target_delimiter", value="")  # as in training: no space before it


def _generation(suite: Suite) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    if suite.temperature is not None:
        overrides |= {"temperature": suite.temperature, "do_sample": suite.temperature > 0}
    if suite.max_tokens is not None:
        overrides["max_gen_toks"] = suite.max_tokens
    return overrides


def _opens_itself(task: Any) -> bool:
    return bool((task.get_config("metadata") or {}).get("opens_thought"))


def _load_model(model: Path, options: HarnessOptions) -> Any:
    from forethought.compute.model import check_model_files, load_tokenizer
    from forethought.lab.downstream.answering import AnsweringModel

    check_model_files(model)
    tokenizer = load_tokenizer(model)
    drop_eos(tokenizer)  # prompts are continued; a BOS precedes them, once
    markers = _markers(model, tokenizer, options)
    return AnsweringModel(
        markers=markers,
        pretrained=str(model),
        tokenizer=tokenizer,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        think_end_token=_think_end(tokenizer, markers),
    )


def _think_end(tokenizer: Any, markers: MarkerTexts | None) -> int | str | None:
    """What ends a thought: the close marker's token, or its text if it is ordinary text of several."""
    if markers is None:
        return None
    close_ids = tokenizer(markers.think_close, add_special_tokens=False)["input_ids"]
    return int(close_ids[0]) if len(close_ids) == 1 else markers.think_close


def _markers(model: Path, tokenizer: Any, options: HarnessOptions) -> MarkerTexts | None:
    """The markers of thoughts that are removed from answers; None if no thought is awaited."""
    from forethought.compute.model import find_markers

    if not (options.opens_thought or options.chat):
        return None
    markers = MarkerTexts(
        options.think_open or DEFAULT_MARKERS.think_open,
        options.think_close or DEFAULT_MARKERS.think_close,
    )
    try:
        found = find_markers(tokenizer, markers.think_open, markers.think_close)
    except InvalidInput as error:
        if not options.opens_thought:
            return None  # its chat template opens no thought
        raise InvalidInput(
            f"{model} has no tokens {markers.think_open!r} and {markers.think_close!r}; expected both, to "
            "open a thought before each answer: name the model's markers (--think-open, --think-close), or "
            f"drop --think ({error})"
        ) from error
    log.info("think markers: %s", found)
    return markers


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)


def adjusted(
    suite: Suite,
    num_runs: int | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    num_fewshot: int | None = None,
) -> Suite:
    """The suite with the given values overriding its own."""
    overrides = {
        "num_runs": num_runs,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "num_fewshot": num_fewshot,
    }
    return replace(suite, **{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
