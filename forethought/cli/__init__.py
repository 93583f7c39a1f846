"""The command line: ``forethought init | up | train | serve | curate | compare | eval | report | …``.

Design: this package starts processes and inspects runs; it computes nothing and imports neither
``services`` nor ``trainer``, whose modules it only passes to ``python -m``. Every module here loads in
milliseconds and imports heavy dependencies inside its functions, so that ``--help`` answers at once.
The price is imports in unusual places.

Exit statuses: 0 finished or stopped cleanly, 1 failure, 2 user error, 3 superseded by a newer learner,
130 killed by a second Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from forethought.cli.compare import compare
from forethought.cli.curate import curate
from forethought.cli.demo import demo
from forethought.cli.doctor import doctor
from forethought.cli.downstream import downstream
from forethought.cli.eval import evaluate
from forethought.cli.init import init
from forethought.cli.launch import examples
from forethought.cli.report import report
from forethought.cli.serve import serve
from forethought.cli.status import status
from forethought.cli.train import train
from forethought.cli.up import up
from forethought.errors import ForethoughtError, why_unwritable

app = typer.Typer(
    name="forethought",
    help="Reinforcement pretraining as services: train a model to think before it predicts.",
    epilog=examples(
        "forethought doctor",
        "forethought up configs/text-cpu.toml corpus.path=books",
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from forethought import __version__

        typer.echo(f"forethought {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the version and exit.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    pass


app.command(epilog=examples("forethought demo", "forethought demo --dir /tmp/demo --seed 1"))(demo)
app.command(epilog=examples("forethought init first", "forethought up first/run.toml"))(init)
app.command(
    epilog=examples(
        "forethought up corpus.path=books",
        "forethought up configs/text-cpu.toml corpus.path=books learner.steps=200",
    )
)(up)
app.command(
    epilog=examples(
        "forethought curate books --model models/proxy --out curated",
        "forethought curate books --model models/proxy --out curated --shard 2/8 --device cuda:1",
    )
)(curate)
app.command(
    epilog=examples(
        "forethought compare configs/compare-cpu.toml --dry-run",
        "forethought compare configs/compare-cpu.toml directory=runs/one seeds=[0]",
    )
)(compare)
app.command(
    "eval",
    epilog=examples(
        "forethought eval runs/demo/rlp",
        "forethought eval models/base runs/a runs/b --out runs/compared",
        "forethought eval --series runs/rpt --out runs/rpt/eval",
    ),
)(evaluate)
app.command(
    epilog=examples(
        "forethought report runs/demo/rlp",
        "forethought report runs/demo/rlp runs/demo/cpt --out compared.html",
    )
)(report)
app.command(
    epilog=examples(
        "forethought downstream runs/demo/rlp --suite state-tracking",
        "forethought downstream runs/rlp --suite rlp-math --think --out scores.json",
    )
)(downstream)
app.add_typer(serve, name="serve")
app.command(
    epilog=examples(
        "forethought train configs/text-cpu.toml corpus.path=books --dry-run",
        "forethought train redis.url=redis://10.0.0.5:6379/0 model.path=models/base corpus.path=books "
        "auth.token_file=token",
    ),
)(train)
app.command(
    epilog=examples(
        "forethought status --redis-url redis://127.0.0.1:6379/0 --watch",
        "forethought status --redis-url redis://127.0.0.1:6379/0 --run books --json",
    )
)(status)
app.command(
    epilog=examples(
        "forethought doctor", "forethought doctor configs/text-cpu.toml corpus.path=books"
    )
)(doctor)


def _expanded(argument: str) -> str:
    """``~`` at the start of a path or of an option's value, which the shell leaves in ``--out=~/x``."""
    if not argument.startswith("--"):
        return os.path.expanduser(argument)
    option, equals, value = argument.partition("=")
    return f"{option}{equals}{os.path.expanduser(value)}"


def _refuse(reason: str) -> NoReturn:
    typer.secho(f"error: {reason}", fg=typer.colors.RED, err=True)
    sys.exit(2)


def main() -> None:
    """Run the command line; a user error is printed as one red message, with exit status 2."""
    try:
        app([_expanded(argument) for argument in sys.argv[1:]])
    except ForethoughtError as error:
        _refuse(str(error))
    except OSError as error:
        if not (reason := why_unwritable(error)):
            raise
        _refuse(reason)
    except KeyboardInterrupt:
        sys.exit(130)
