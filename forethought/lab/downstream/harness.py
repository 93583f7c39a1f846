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
from forethought.lab.downstream.suites import Suite, SuiteTask
from forethought.run.directory import RunDirectory
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
    appends the think-open marker to every prompt of a generative task that does not end with it.

    Example:
        ``HarnessOptions(batch_size=16, limit=100, opens_thought=True)``
    """

    batch_size: int = 8
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "auto"
    opens_thought: bool = False
    chat: bool = False
    think_open: str = "<think>"
    think_close: str = "</think>"


def find_model(path: Path) -> Path:
    """The transformers directory of a checkpoint, a run (its newest checkpoint), or itself.

    Raises:
        InvalidInput: there is no model.
    """
    for candidate in (path, path / "model"):
        if (candidate / "config.json").exists():
            return candidate
    if (path / "checkpoints").is_dir():
        return RunDirectory(path).model()
    raise InvalidInput(
        f"{path} holds no model; expected a run directory, a checkpoint, or a directory with config.json"
    )


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


def run_suite(model: Path, suite: Suite, options: HarnessOptions) -> list[Results]:
    """One result per run, in order. Blocking, for minutes to days.

    Raises:
        InvalidInput: the harness is missing, does not know a task, or cannot load its data.
    """
    check_installed()
    from lm_eval import evaluator

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = _load_tasks(_manager(suite), suite)
    for task in loaded["tasks"].values():
        _configure(task, suite, options)
    language_model = _load_model(model, options)
    runs: list[Results] = []
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
    return runs


def _manager(suite: Suite) -> Any:
    from lm_eval.tasks import TaskManager

    # Loading the harness's thousands of task files takes seconds; Forethought's tasks do not need them.
    only_added = all(scored.task.startswith(_PREFIX) for scored in suite.tasks)
    return TaskManager(include_path=str(TASKS), include_defaults=not only_added)


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
    except (OSError, ValueError) as error:  # no network, a gated dataset, an unknown split
        raise InvalidInput(
            f"the data of a task cannot be loaded ({error}); expected network access or a populated cache "
            "(HF_HOME), and for gated datasets such as GPQA a login: `hf auth login`"
        ) from error
    return loaded


def _configure(task: Any, suite: Suite, options: HarnessOptions) -> None:
    """Override a task's settings with the suite's, as the harness's command line does."""
    task.set_fewshot_seed(seed=options.seed)
    if suite.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=suite.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    if task.get_config("output_type") != "generate_until":
        return
    if overrides := _generation(suite):
        task.set_config(key="generation_kwargs", value=overrides, update=True)
    if options.opens_thought and not _opens_itself(task):
        task.set_config(key="gen_prefix", value=options.think_open)


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
    from lm_eval.models.huggingface import HFLM

    from forethought.compute.model import check_model_files, load_tokenizer

    check_model_files(model)
    tokenizer = load_tokenizer(model)
    drop_eos(tokenizer)  # prompts are continued; a BOS precedes them, once
    return HFLM(
        pretrained=str(model),
        tokenizer=tokenizer,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        think_end_token=_think_end(model, tokenizer, options),
    )


def _think_end(model: Path, tokenizer: Any, options: HarnessOptions) -> int | str | None:
    """What ends a thought: the close marker's token, or its text if it is ordinary text of several."""
    from forethought.compute.model import find_markers

    if not (options.opens_thought or options.chat):
        return None
    try:
        markers = find_markers(tokenizer, options.think_open, options.think_close)
    except InvalidInput as error:
        if not options.opens_thought:
            return None  # its chat template opens no thought
        raise InvalidInput(
            f"{model} has no tokens {options.think_open!r} and {options.think_close!r}; expected both, to "
            f"open a thought before each answer: name the model's markers, or drop --think ({error})"
        ) from error
    log.info("think markers: %s", markers)
    return markers.close_ids[0] if len(markers.close_ids) == 1 else options.think_close


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
