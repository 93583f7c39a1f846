"""The papers' evaluations as settings: tasks, how they are sampled, and how often.

    RLP   arXiv 2510.01265, tables 1 and 2: math pass@1 over 8 runs, science greedy and over 4 runs
    RPT   arXiv 2506.08007, section 5: zero-shot, 12,288 tokens, temperature 0.8

Design: where the harness has a task, it is used, with its own prompt and shots; RLP was evaluated with
NeMo-Skills, whose prompts differ, so scores are comparable among our own checkpoints and only roughly with
the papers'. Values that neither paper states are ours, and ``note`` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from forethought.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """A task of the harness and the metric that counts, as ``metric,filter`` in the harness's naming.

    Example:
        ``SuiteTask("gsm8k", "exact_match,flexible-extract")``
    """

    task: str
    metric: str


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks that are reported together.

    ``num_runs`` sampled runs are averaged (pass@1[n]). Temperature 0 is greedy. None leaves
    ``temperature``, ``num_fewshot`` and ``max_tokens`` at each task's own value. ``has_mean``: the tasks
    are averaged.

    Example:
        ``Suite((SuiteTask("mmlu_pro", "exact_match,custom-extract"),), num_runs=4, temperature=0.8)``
    """

    tasks: tuple[SuiteTask, ...]
    num_runs: int = 1
    temperature: float | None = None
    max_tokens: int | None = None
    num_fewshot: int | None = None
    has_mean: bool = True
    note: str = ""


_MATH = (
    SuiteTask("gsm8k_cot_zeroshot", "exact_match,flexible-extract"),
    SuiteTask("minerva_math500", "math_verify,none"),  # MATH-500 with Minerva's four examples
    SuiteTask("forethought_minerva", "math_verify,none"),
    SuiteTask("forethought_amc23", "math_verify,none"),
    SuiteTask("aime25", "exact_match,none"),
)
_SCIENCE = (
    SuiteTask("mmlu_generative", "exact_match,get_response"),
    SuiteTask("mmlu_pro", "exact_match,custom-extract"),
    SuiteTask("gpqa_diamond_cot_zeroshot", "exact_match,flexible-extract"),
)
_REASONING = (
    SuiteTask("mmlu_pro", "exact_match,custom-extract"),
    SuiteTask("forethought_supergpqa", "exact_match,last-letter"),
)
_TRACKING = (
    SuiteTask("forethought_state_tracking_plain", "acc,none"),
    SuiteTask("forethought_state_tracking_thought", "exact_match,answer"),
    SuiteTask("forethought_state_tracking_greedy", "exact_match,answer"),
)

_OF_ONE_FILE = {
    "gsm8k": Suite(
        (SuiteTask("forethought_gsm8k", "exact_match,flexible-extract"),),
        note="GSM8K, zero-shot, step by step: the harness's gsm8k_cot_zeroshot",
    ),
    "gsm8k-text": Suite(
        (SuiteTask("forethought_gsm8k_text", "exact_match,answer"),),
        note="GSM8K as a text to be continued, for models trained on it: the question, a new line",
    ),
    "math": Suite(
        (SuiteTask("forethought_math", "math_verify,none"),),
        note="MATH with Minerva's four examples: the harness's minerva_math",
    ),
    "math500": Suite(
        (SuiteTask("forethought_math500", "math_verify,none"),),
        note="MATH-500 with Minerva's four examples: the harness's minerva_math500",
    ),
    "amc23": Suite((SuiteTask("forethought_amc23", "math_verify,none"),), note="AMC23, zero-shot"),
    "minerva": Suite(
        (SuiteTask("forethought_minerva", "math_verify,none"),),
        note="Minerva's OpenCourseWare problems, zero-shot",
    ),
    "mmlu": Suite(
        (
            SuiteTask("forethought_mmlu", "acc,none"),
            SuiteTask("forethought_mmlu_generative", "exact_match,get_response"),
        ),
        has_mean=False,  # two ways of answering the same questions
        note="MMLU by the likeliest letter and by the letter written: the harness's mmlu, mmlu_generative",
    ),
}

SUITES = _OF_ONE_FILE | {
    "state-tracking": Suite(
        _TRACKING,
        has_mean=False,  # three ways of answering the same questions
        note="the demo's questions, offline: without a thought, after a sampled one, after a greedy one",
    ),
    "rlp-math": Suite(
        _MATH,
        num_runs=8,
        temperature=0.7,
        max_tokens=4096,
        note="RLP: pass@1 over 8 runs; temperature (training's) and length are ours",
    ),
    "rlp-science": Suite(
        _SCIENCE, temperature=0.0, max_tokens=4096, note="RLP: greedy; the length is ours"
    ),
    "rlp-science-sampled": Suite(
        _SCIENCE,
        num_runs=4,
        temperature=0.7,
        max_tokens=4096,
        note="RLP: pass@1 over 4 runs, its @1[4]; temperature (training's) and length are ours",
    ),
    "rpt": Suite(
        _REASONING,
        temperature=0.8,
        max_tokens=12_288,
        num_fewshot=0,
        note="RPT: zero-shot, temperature 0.8, 12,288 tokens; the paper used 200 questions per category",
    ),
}
"""The suites by the name given to ``--suite``."""


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        InvalidInput: there is no such suite.
    """
    if name not in SUITES:
        raise InvalidInput(f"--suite is {name!r}; expected one of {', '.join(SUITES)}")
    return SUITES[name]


def benchmark_of(task: str) -> str | None:
    """The data set of one of Forethought's tasks that reads a file or the hub; None for other tasks.

    Example:
        ``benchmark_of("forethought_gsm8k_text") == "gsm8k"``
    """
    from forethought.lab.downstream.questions import BENCHMARKS

    return next(
        (
            name
            for name in BENCHMARKS
            if task == f"forethought_{name}" or task.startswith(f"forethought_{name}_")
        ),
        None,
    )
