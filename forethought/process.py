"""Startup and exit of every Forethought process: settings, logging, and the exit status.

0  done, or drained after SIGTERM        3  a newer learner owns the run
2  the user must change something        4  nothing was learned, or no rollout replica is sound
   (one line, no traceback)                 (the run's checkpoint and summary are written)
                                         1  standard output is closed; anything else (traceback)
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import select
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from forethought.config import Settings, load_settings
from forethought.errors import (
    Forbidden,
    InvalidInput,
    Superseded,
    Unauthenticated,
    Unreachable,
    why_unwritable,
)
from forethought.telemetry.log import configure_logging

log = logging.getLogger(__name__)

FAILED, USER_ERROR, SUPERSEDED, NOTHING_LEARNED = 1, 2, 3, 4
_STDOUT = 1


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The arguments all processes share: a configuration file and ``section.key=value`` overrides."""
    arguments = argparse.ArgumentParser(prog=program, description=description)
    arguments.add_argument("--config", type=Path, help="a TOML configuration file")
    arguments.add_argument("overrides", nargs="*", metavar="section.key=value")
    return arguments


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings given by parsed arguments.

    Raises:
        InvalidInput: the file or an override is invalid.
    """
    return load_settings(arguments.config, arguments.overrides)


def exit_status(process: str, main: Callable[[], int]) -> int:
    """Run ``main`` with logging configured and map its exceptions to an exit status.

    Import heavy libraries inside ``main``: their progress bars must be disabled before the import.
    """
    configure_logging(process)
    quiet_libraries()
    try:
        status = main()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _is_stdout_closed():
            raise
        _discard_stdout()
        return FAILED
    except (InvalidInput, Unauthenticated, Forbidden) as error:
        print(f"{process}: {error}", file=sys.stderr)
        return USER_ERROR
    except Unreachable as error:  # may be transient: a supervisor restarts the process
        print(f"{process}: {error}", file=sys.stderr)
        return FAILED
    except Superseded as error:
        print(f"{process}: {error}", file=sys.stderr)
        return SUPERSEDED
    except OSError as error:
        if not (reason := why_unwritable(error)):
            raise
        print(f"{process}: {reason}", file=sys.stderr)
        return USER_ERROR


def run_status(summary: Mapping[str, Any], stopped_status: int) -> int:
    """The exit status of a learner that wrote this summary; ``stopped_status``: before its last step."""
    if failure := summary.get("failure"):
        log.error("%s", failure)
        return NOTHING_LEARNED
    return 0 if summary["done"] else stopped_status


def exit_at_once(error: Exception) -> NoReturn:
    """Exit as failed without waiting for threads or children, one of which may never end."""
    log.critical("%s", error)
    logging.shutdown()
    os._exit(FAILED)


def _is_stdout_closed() -> bool:
    """Whether standard output is a pipe whose reader has gone (``--dry-run | head -1``)."""
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_stdout() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def run_service(
    name: str,
    serve: Callable[[Settings, asyncio.Event], Awaitable[int]],
    description: str | None,
    argv: Sequence[str] | None = None,
    needs_redis: Callable[[Settings], bool] = lambda _: True,
) -> int:
    """A replica's main: parse the command line, serve until SIGTERM or SIGINT; returns the exit status."""
    arguments = parser(f"python -m services.{name}", description or "").parse_args(argv)

    def run() -> int:
        settings = settings_of(arguments)
        if needs_redis(settings) and not settings.redis.url:
            raise InvalidInput(
                "redis.url is empty; expected the URL of the run's Redis, such as "
                "redis://127.0.0.1:6379"
            )
        if needs_redis(settings):  # weights come from the learner
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return run_until_signalled(lambda stop: serve(settings, stop))

    return exit_status(name, run)


def quiet_libraries() -> None:
    """Disable progress bars and chatter of the model libraries; call before importing them."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def run_until_signalled(main: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    """Run an async main; the first SIGTERM or SIGINT sets its stop event, the second cancels it."""

    async def supervised() -> int:
        stop, task = asyncio.Event(), asyncio.current_task()
        assert task is not None

        def on_signal(name: str) -> None:
            if stop.is_set():
                task.cancel()
            log.info("received %s, stopping", name)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number.name)
        return await main(stop)

    with asyncio.Runner(loop_factory=_fast_loop_factory()) as runner:
        return runner.run(supervised())


def _fast_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where installed (the http extra includes it): it cuts the servers' CPU cost by a third."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
