"""Processes without their imports: forked from a server that has PyTorch and transformers in memory.

Importing the two takes a process most of its start, and whole runs start dozens. Nothing of Forethought is
in the server, so what a module imports of ours, and when, is as with ``python -m``. This file imports the
standard library alone, because every child imports it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

IS_POSSIBLE = sys.platform.startswith("linux")
"""Elsewhere what has loaded such libraries may not be forked."""

_LIBRARIES = ["torch", "transformers.models.auto.modeling_auto", "transformers.generation"]
_PR_SET_PDEATHSIG = 1


class Forked:
    """What ``subprocess.Popen`` offers, of a forked ``python -m MODULE``."""

    def __init__(self, module: str, words: Sequence[str], log: Path, env: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_LIBRARIES)
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # read when PyTorch is loaded
            forkserver.ensure_running()
        asked = (module, list(words), str(log), env)
        self._child = context.Process(target=_run, args=asked, daemon=True)
        self._child.start()
        assert self._child.pid is not None
        self.pid = self._child.pid

    def poll(self) -> int | None:
        return self._child.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._child.join(timeout)
        if self._child.exitcode is None:
            raise subprocess.TimeoutExpired(self._child.name, timeout or 0)
        return self._child.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(module: str, words: list[str], log: str, env: dict[str, str]) -> None:
    ctypes.CDLL(None).prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
    )  # the server ends with pytest
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
