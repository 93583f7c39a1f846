"""``forethought curate``: annotate a corpus with a proxy's entropies, once for all runs on it.

Design: like the other commands, this module loads nothing heavy before it is called. It runs in one process
on one device; several processes split a folder with ``--shard``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import typer

from forethought.errors import InvalidInput
from forethought.special_tokens import Choice

if TYPE_CHECKING:
    from forethought.config.sections import SourceSection
    from forethought.lab.curation import CurationRequest

_CORPUS = typer.Argument(
    metavar="CORPUS", help="A file, a folder, a saved Hugging Face dataset, or the id of one."
)
_MODEL = typer.Option(
    ..., "--model", metavar="DIR", help="The proxy: a model directory or owner/name."
)
_OUT = typer.Option(..., "--out", metavar="DIR", help="Output folder of the annotated corpus.")


def curate(
    corpus: Path = _CORPUS,
    model: Path = _MODEL,
    out: Path = _OUT,
    window_tokens: int = typer.Option(
        256, "--window-tokens", help="corpus.window_tokens of the runs that will use the corpus."
    ),
    top_k: int = typer.Option(16, "--top-k", min=1, help="Top-k tokens that the entropy covers."),
    renormalise: bool = typer.Option(
        False, "--renormalise", help="Renormalise their probabilities to sum to 1."
    ),
    shard: str = typer.Option(
        "1/1", "--shard", metavar="i/n", help="Process the i-th of n equal shards."
    ),
    text_field: str = typer.Option("text", "--text-field", help="Record field of the text."),
    marks_field: str = typer.Option("marks", "--marks-field", help="Record field of the marks."),
    marks_pattern: str = typer.Option(
        "",
        "--marks-pattern",
        metavar="REGEX",
        help="Also mark what a regular expression matches in the text: '[0-9]+' for numbers.",
    ),
    split: str = typer.Option("", "--split", help="Split of the corpus, such as train."),
    subset: str = typer.Option("", "--subset", help="Subset of the corpus, such as main."),
    template: str = typer.Option("", "--template", help="Text from several columns: {a} {b}."),
    strip_pattern: str = typer.Option(
        "", "--strip-pattern", help="Regular expression to remove from the text."
    ),
    skip_invalid: bool = typer.Option(
        False, "--skip-invalid", help="Skip and count records that cannot be read."
    ),
    device: str = typer.Option("auto", "--device", help="cpu, cuda or cuda:N."),
    dtype: str = typer.Option(
        "float32", "--dtype", help="float32, bfloat16, or auto: bfloat16 where it is faster."
    ),
    bos: str = typer.Option(
        "tokenizer", "--bos", help="tokenizer, always or never; see model.bos in the settings."
    ),
    eos: str = typer.Option(
        "tokenizer", "--eos", help="tokenizer, always or never; see corpus.eos in the settings."
    ),
    batch_tokens: int = typer.Option(
        16_384, "--batch-tokens", min=1, help="Tokens per forward pass."
    ),
) -> None:
    """Annotate every token of a corpus with its entropy under a proxy, one forward pass per window.

    The output is a corpus: train on it with corpus.path=DIR and the tokenizer of the proxy. The same
    command resumes where it stopped.
    """
    from forethought.config.sections import checked_pattern
    from forethought.lab.curation import CurationRequest
    from forethought.run.pinning import pinned_path

    part, num_shards = _parsed(shard)
    _check_dtype(dtype)
    _run(
        CurationRequest(
            source=_source(
                path=str(corpus),
                text_field=text_field,
                marks_field=marks_field,
                marks_pattern=checked_pattern(marks_pattern),
                split=split,
                subset=subset,
                template=template,
                strip_pattern=strip_pattern,
                skip_invalid=skip_invalid,
            ),
            model=Path(pinned_path(str(model))),
            out=out,
            window_tokens=window_tokens,
            top_k=top_k,
            renormalise=renormalise,
            shard=part,
            num_shards=num_shards,
            device=device,
            dtype=dtype,
            bos=_choice("--bos", bos),
            eos=_choice("--eos", eos),
            max_batch_tokens=batch_tokens,
        )
    )


def _source(**keys: Any) -> SourceSection:
    from pydantic import ValidationError

    from forethought.config.sections import SourceSection

    try:
        return SourceSection(**keys)
    except ValidationError as error:
        raise InvalidInput(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _run(request: CurationRequest) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from forethought.compute.model import precision_of
    from forethought.hub import model_folder
    from forethought.lab.curation import curate as write_parts

    precision = precision_of(model_folder(request.model), request.dtype, request.device)
    typer.echo(f"computing in {precision}", err=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        _show_what_was_read()
        task = progress.add_task("windows", total=None)

        def report(num_done: int, num_windows: int) -> None:
            progress.update(task, completed=num_done, total=num_windows)

        num_windows = write_parts(request, report)
    kind = "renormalised" if request.renormalise else "not renormalised"
    typer.echo(
        f"{num_windows} windows in {request.out}, entropies in nats over the top {request.top_k} "
        f"tokens, {kind}"
    )
    typer.echo(
        f"to train on them: corpus.path={request.out} corpus.window_tokens={request.window_tokens}"
    )


def _show_what_was_read() -> None:
    """Print what the corpus was read from and what of it was left out, above the progress bar."""
    handler = logging.StreamHandler(sys.stderr)  # the progress display's, while it is shown
    handler.setFormatter(logging.Formatter("%(message)s"))
    reader = logging.getLogger("forethought.corpus")
    reader.setLevel(logging.INFO)
    reader.handlers = [handler]


def _parsed(shard: str) -> tuple[int, int]:
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InvalidInput(f"--shard is {shard!r}; expected i/n, such as 1/4 to 4/4")
    return int(index), int(count)


def _choice(option: str, value: str) -> Choice:
    for choice in get_args(Choice):
        if value == choice:
            return cast("Choice", choice)
    raise InvalidInput(f"{option} is {value!r}; expected tokenizer, always or never")


def _check_dtype(dtype: str) -> None:
    if dtype not in ("auto", "float32", "bfloat16"):
        raise InvalidInput(f"--dtype is {dtype!r}; expected auto, float32 or bfloat16")
