r"""Mathematical equality by the math-verify library, in a child process.

``\frac{1}{2}`` is 0.5, ``\{1,2\}`` is ``\{2,1\}``; parsing LaTeX and deciding equality is done by
math-verify (and sympy). Its timeouts use ``SIGALRM``, which only a main thread can receive and which does
not interrupt one long operation in C, such as the power in ``9^{9^{9}}``.

Design: so the library runs in a child process, in whose main thread its own timeouts work; the caller waits
a second longer than those and then kills the child, and the next answer starts a new one. An answer that
could not be verified in time, or on which the library fails, counts as wrong, and is counted and logged.
The price: the first answer, and the first after a child was killed, wait some seconds for the import of
sympy.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

from forethought.errors import NotInstalled
from forethought.verification.answers import is_same_text

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
"""Enough to import sympy on a busy machine."""

_GRACE_S = 1.0
_CHUNK_BYTES = 4096


class MathVerifier:
    """Compares answers as mathematics. Blocking and thread-safe: keep it off the event loop.

    Args:
        timeout_s: the time limit for parsing or comparing one answer, in seconds.

    Attributes:
        num_timed_out: answers that took longer and so counted as wrong.
        num_failed: answers on which the library failed or its process ended, and so counted as wrong.

    Example:
        ``MathVerifier(timeout_s=5.0).are_right(r"\\frac{1}{2}", ["0.5", "2"]) == (True, False)``

    Raises:
        NotInstalled: math-verify is not installed.
    """

    def __init__(self, timeout_s: float) -> None:
        check_installed()
        self._timeout_s = timeout_s
        self._lock = Lock()
        self._child: _Child | None = None
        self.num_timed_out = self.num_failed = 0

    def are_right(self, truth: str, answers: Sequence[str]) -> tuple[bool, ...]:
        """One verdict per answer, in order; equal answers are verified once."""
        with self._lock:
            verdicts = {answer: self._is_right(truth, answer) for answer in dict.fromkeys(answers)}
        return tuple(verdicts[answer] for answer in answers)

    def _is_right(self, truth: str, answer: str) -> bool:
        if not answer.strip():
            return False
        if is_same_text(truth, answer):
            return True
        try:
            verdict = self._query_child(truth, answer)
        except TimeoutError:
            verdict = "late"
            self._end()
        except OSError as error:
            verdict = str(error)
            self._end()
        if verdict not in ("right", "wrong"):
            self._note(answer, verdict)
        return verdict == "right"

    def _query_child(self, truth: str, answer: str) -> str:
        if self._child is None:
            self._child = _Child(self._timeout_s)
        return self._child.ask([truth, answer], self._timeout_s + _GRACE_S)

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None

    def _note(self, answer: str, verdict: str) -> None:
        self.num_timed_out += verdict == "late"
        self.num_failed += verdict != "late"
        log.warning(
            "answer %.80a cannot be verified (%s) and counts as wrong; so far %d late, %d failed",
            answer, verdict, self.num_timed_out, self.num_failed,
        )  # fmt: skip


class _Child:
    """The child process that runs the library: one JSON line in, one verdict line out."""

    def __init__(self, timeout_s: float) -> None:
        # The child must find this package the way we did, installed or not, and nothing else.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "forethought.verification", str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.end = weakref.finalize(self, _end, self._process)
        try:
            self._line(START_TIMEOUT_S)  # the child prints a line when it is ready
        except OSError:
            self.end()
            raise

    def ask(self, question: list[str], timeout_s: float) -> str:
        """The verdict: right, wrong, late or failed.

        Raises:
            TimeoutError: no verdict within ``timeout_s``.
            OSError: the process ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._line(timeout_s).decode().strip()

    def _line(self, timeout_s: float) -> bytes:
        # Not readline, which would block without a timeout until the line ends.
        assert self._process.stdout is not None
        descriptor, line = self._process.stdout.fileno(), b""
        deadline_s = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([descriptor], [], [], left_s)[0]:
                raise TimeoutError(f"no reply from the verifier process within {timeout_s:g} s")
            read = os.read(descriptor, _CHUNK_BYTES)
            if not read:
                raise OSError("the verifier process ended")
            line += read
        return line


def check_installed() -> None:
    """Check that math-verify is installed.

    Raises:
        NotInstalled: it is not.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise NotInstalled(
            "verifier 'math' needs the math-verify library, which is not installed; expected "
            "`pip install 'forethought[math]'` where learner and reward service run, or verifier = 'exact'"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # from a query that was never read
                pipe.close()
