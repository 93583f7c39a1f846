"""``forethought eval``: the benefit of thinking at held-out positions, for one checkpoint or a series.

Design: like the other commands, this module loads nothing heavy before it is called. Options that are not
given default to the settings of the first checkpoint's run, so that a run is evaluated without any. The
price is that two runs with different settings are both evaluated with the first one's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.errors import InvalidInput

if TYPE_CHECKING:
    from forethought.lab.evaluation.request import EvalRequest
    from forethought.run.checkpoints import Checkpoint

_SPLITS, _THOUGHTS, _TEXT = "Positions", "Thoughts", "Text"


def _option(help_text: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel, **more)


_Checkpoints = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Model directories, checkpoint folders, run directories, or ids on the Hugging Face hub.",
    ),
]
_Series = Annotated[
    Path | None, _option("Evaluate all checkpoints of a run and fit scaling laws.", metavar="RUN")
]
_Out = Annotated[
    Path | None, _option("Write eval.json and eval.png to this folder.", metavar="DIR")
]
_Compute = Annotated[str, _option("Unit of compute of a series: flops, tokens or steps.")]
_Seed = Annotated[int, _option("Seed of positions, thoughts and intervals.", min=0)]
_Device = Annotated[str, _option("cpu, cuda or cuda:N.")]
_Dtype = Annotated[
    str,
    _option("float32, bfloat16, or auto: bfloat16 where it is faster. Figures differ by rounding."),
]
_CacheGb = Annotated[
    float,
    _option(
        "Memory of a decode batch's key-value cache in GB; sets its size, no figure.", min=0.001
    ),
]
_Threads = Annotated[int, _option("Torch threads; 0: torch's choice.", min=0)]

_Corpus = Annotated[
    str,
    _option(
        "Held-out text, a path or owner/name; default: the heldout file next to the run's corpus.",
        _TEXT,
        metavar="PATH",
    ),
]
_Documents = Annotated[int, _option("Maximum number of windows.", _TEXT, min=1)]
_Window = Annotated[int | None, _option("Window length; default: the run's.", _TEXT, min=2)]
_TextField = Annotated[str, _option("Record field of the text.", _TEXT)]
_MarksField = Annotated[str, _option("Record field of the marks.", _TEXT)]
_MarksPattern = Annotated[
    str,
    _option(
        "Also mark what a regular expression matches in the text: '[0-9]+' for numbers.",
        _TEXT,
        metavar="REGEX",
    ),
]
_Split = Annotated[
    str,
    _option(
        "Split to read, such as test; without --corpus, of the run's corpus.", _TEXT, metavar="NAME"
    ),
]
_Subset = Annotated[str, _option("Subset of the data set to read.", _TEXT, metavar="NAME")]
_Template = Annotated[
    str, _option("Text from several columns, such as {question} {answer}.", _TEXT)
]
_StripPattern = Annotated[str, _option("Regular expression to remove from the text.", _TEXT)]

_Proxy = Annotated[
    Path | None,
    _option(
        "Model whose entropies define the splits; default: the corpus's, or the first checkpoint.",
        _SPLITS,
        metavar="MODEL",
    ),
]
_Positions = Annotated[int, _option("Maximum number of positions per split.", _SPLITS, min=1)]
_NoiseField = Annotated[
    str, _option("Record field that marks positions where no thought can help.", _SPLITS)
]
_NoiseEntropy = Annotated[
    float, _option("Entropy in nats from which an unmarked position is noise.", _SPLITS, min=0)
]

_Group = Annotated[
    int | None, _option("Thoughts per position; default: the run's.", _THOUGHTS, min=1)
]
_Budget = Annotated[int | None, _option("Thought budget; default: the run's.", _THOUGHTS, min=1)]
_Temperature = Annotated[
    float | None, _option("Temperature of thoughts and predictions; default: the run's.", _THOUGHTS)
]
_Prompt = Annotated[str, _option("RPT's prompt, plain or v0 to v6; default: the run's.", _THOUGHTS)]
_Bos = Annotated[
    str, _option("model.bos: tokenizer, always or never; default: the run's.", _THOUGHTS)
]
_Marker = Annotated[str, _option("Think marker; default: the run's.", _THOUGHTS)]
_AddMarkers = Annotated[
    bool,
    _option("Add markers that a model lacks as untrained tokens; default: the run's.", _THOUGHTS),
]
_PassAt = Annotated[
    str, _option("Values of k for pass@k; default: 1,2,4 … G.", _THOUGHTS, metavar="K,K")
]


def evaluate(
    checkpoints: _Checkpoints = None,
    series: _Series = None,
    out: _Out = None,
    corpus: _Corpus = "",
    num_documents: _Documents = 512,
    window_tokens: _Window = None,
    text_field: _TextField = "",
    marks_field: _MarksField = "",
    marks_pattern: _MarksPattern = "",
    split: _Split = "",
    subset: _Subset = "",
    template: _Template = "",
    strip_pattern: _StripPattern = "",
    proxy: _Proxy = None,
    num_positions: _Positions = 512,
    noise_field: _NoiseField = "",
    noise_entropy: _NoiseEntropy = 1.0,
    group_size: _Group = None,
    max_thought_tokens: _Budget = None,
    temperature: _Temperature = None,
    prompt: _Prompt = "",
    think_open: _Marker = "",
    think_close: _Marker = "",
    add_think_tokens: _AddMarkers = False,
    bos: _Bos = "",
    pass_at: _PassAt = "",
    compute: _Compute = "flops",
    seed: _Seed = 0,
    device: _Device = "auto",
    dtype: _Dtype = "float32",
    cache_gb: _CacheGb = 4.0,
    num_threads: _Threads = 1,
) -> None:
    """Measure the benefit of thinking at easy, medium, hard, marked and noise positions of held-out text.

    All checkpoints are evaluated at the same positions with the same random numbers. --series fits accuracy
    as a power law of training compute.
    """
    from forethought.config.sections import checked_pattern
    from forethought.lab.evaluation.request import EvalRequest, Overrides
    from forethought.lab.evaluation.text import Noise
    from forethought.run.pinning import pinned_path

    _check("--dtype", dtype, ("auto", "float32", "bfloat16"))
    overrides = Overrides(
        corpus=corpus,
        text_field=text_field,
        marks_field=marks_field,
        marks_pattern=checked_pattern(marks_pattern),
        split=split,
        subset=subset,
        template=template,
        strip_pattern=strip_pattern,
        window_tokens=window_tokens,
        group_size=group_size,
        max_thought_tokens=max_thought_tokens,
        temperature=temperature,
        prompt=prompt,
        think_open=think_open,
        think_close=think_close,
        add_think_tokens=add_think_tokens,
        bos=bos,
    )
    request = EvalRequest(
        checkpoints=_checkpoints(checkpoints or [], series),
        overrides=overrides,
        is_series=series is not None,
        proxy=Path(pinned_path(str(proxy))) if proxy else None,
        num_positions=num_positions,
        num_documents=num_documents,
        k_list=_numbers(pass_at),
        noise=Noise(noise_field, noise_entropy),
        unit=_unit(compute),
        seed=seed,
        device=device,
        dtype=dtype,
        max_cache_bytes=int(cache_gb * 1e9),
    )
    _run(request, out, num_threads)


def _run(request: EvalRequest, out: Path | None, num_threads: int) -> None:
    """Evaluate with a progress bar, then show and write the report."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from forethought.lab.evaluation.study import evaluate_checkpoints
    from forethought.process import quiet_libraries

    quiet_libraries()
    _set_threads(num_threads)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        _show_log()
        tasks: dict[str, Any] = {}

        def report_progress(stage: str, num_done: int, num_all: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=num_all)
            progress.update(tasks[stage], completed=num_done)

        report = evaluate_checkpoints(request, report_progress)
    _show(report, out)


def _show_log() -> None:
    """Print what an evaluation logs at its start, above the progress bar."""
    import logging

    handler = logging.StreamHandler(sys.stderr)  # the progress display's, while it is shown
    log = logging.getLogger("forethought.lab.evaluation")
    log.setLevel(logging.INFO)
    log.handlers = [handler]


def _show(report: dict[str, Any], out: Path | None) -> None:
    import json

    from rich.console import Console

    from forethought.lab.evaluation.drawing import draw_evaluation
    from forethought.lab.evaluation.table import law_lines, lines, quartile_tables, tables

    console = Console()
    typer.echo("\n".join(lines(report)) + "\n")
    for table in (*tables(report), *quartile_tables(report)):
        console.print(table)
    typer.echo("\n".join(law_lines(report)))
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, allow_nan=False)
    (out / "eval.json").write_text(text + "\n", encoding="utf-8")
    draw_evaluation(report, out / "eval.png")
    typer.echo(f"report      {out / 'eval.json'}, {out / 'eval.png'}")


def _checkpoints(paths: list[Path], run: Path | None) -> tuple[Checkpoint, ...]:
    from forethought.config import load_settings
    from forethought.run.checkpoints import distinct, resolve, series
    from forethought.run.directory import RunDirectory

    if bool(paths) == (run is not None):
        raise InvalidInput(
            f"got {len(paths)} checkpoints and {'a' if run else 'no'} --series; expected one of them: "
            "forethought eval CHECKPOINT…, or forethought eval --series RUN"
        )
    if run is None:
        return tuple(distinct([resolve(path) for path in paths]))
    config = RunDirectory(run).config
    model = load_settings(config if config.is_file() else None, environment={}).model
    return tuple(distinct(series(run, model.path, model.revision)))


def _set_threads(num_threads: int) -> None:
    import torch

    if num_threads:
        torch.set_num_threads(num_threads)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InvalidInput(f"--pass-at is {text!r}; expected numbers such as 1,4,8")
    return tuple(map(int, parts))


def _unit(text: str) -> Any:
    _check("--compute", text, ("flops", "tokens", "steps"))
    return text


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"{option} is {value!r}; expected one of {', '.join(known)}")
