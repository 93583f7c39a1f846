"""``forethought curate``: annotate a corpus with a proxy's entropies, once, for every run on it.

Design: as the other commands, this module loads nothing heavy before it is called. It runs in its own
process and on one device; more of them share a folder by ``--shard``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from forethought.errors import InvalidInput

if TYPE_CHECKING:
    from forethought.lab.curation import CurationRequest

_CORPUS = typer.Argument(metavar="CORPUS", help="A file, a folder or a saved Hugging Face dataset.")
_MODEL = typer.Option(..., "--model", metavar="DIR", help="The proxy: a local model directory.")
_OUT = typer.Option(..., "--out", metavar="DIR", help="Where the annotated corpus goes.")


def curate(
    corpus: Path = _CORPUS,
    model: Path = _MODEL,
    out: Path = _OUT,
    window_tokens: int = typer.Option(
        256, "--window-tokens", help="As corpus.window_tokens of the runs on it."
    ),
    top_k: int = typer.Option(16, "--top-k", min=1, help="Over how many likeliest tokens."),
    renormalise: bool = typer.Option(
        False, "--renormalise", help="Make their probabilities sum to 1."
    ),
    shard: str = typer.Option("1/1", "--shard", metavar="i/n", help="The i-th of n equal shares."),
    text_field: str = typer.Option("text", "--text-field", help="Where records hold their text."),
    marks_field: str = typer.Option("marks", "--marks-field", help="Where they hold marks."),
    device: str = typer.Option("auto", "--device", help="cpu, cuda or cuda:N."),
    dtype: str = typer.Option("float32", "--dtype", help="float32 or bfloat16."),
    batch_tokens: int = typer.Option(16_384, "--batch-tokens", min=1, help="Of one forward pass."),
) -> None:
    """Write every position's entropy beside the corpus's tokens, one forward pass a window.

    The output is a corpus: train on it with corpus.path=DIR and the tokenizer of the proxy. Started again,
    it goes on where it was stopped.
    """
    from forethought.config.sections import SourceSection
    from forethought.lab.curation import CurationRequest

    part, num_shards = _parsed(shard)
    _check_dtype(dtype)
    _run(
        CurationRequest(
            source=SourceSection(path=str(corpus), text_field=text_field, marks_field=marks_field),
            model=model,
            out=out,
            window_tokens=window_tokens,
            top_k=top_k,
            renormalise=renormalise,
            shard=part,
            num_shards=num_shards,
            device=device,
            dtype=dtype,
            max_batch_tokens=batch_tokens,
        )
    )


def _run(order: CurationRequest) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from forethought.lab.curation import curate as write_parts

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("windows", total=None)

        def report(num_done: int, num_windows: int) -> None:
            progress.update(task, completed=num_done, total=num_windows)

        num_windows = write_parts(order, report)
    kind = "renormalised" if order.renormalise else "not renormalised"
    typer.echo(
        f"{num_windows} windows in {order.out}, entropies in nats over the top {order.top_k} tokens, {kind}"
    )
    typer.echo(
        f"to train on them: corpus.path={order.out} corpus.window_tokens={order.window_tokens}"
    )


def _parsed(shard: str) -> tuple[int, int]:
    number, slash, of = shard.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise InvalidInput(f"--shard is {shard!r}; expected i/n, such as 1/4 to 4/4")
    return int(number), int(of)


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16"):
        raise InvalidInput(f"--dtype is {dtype!r}; expected float32 or bfloat16")
