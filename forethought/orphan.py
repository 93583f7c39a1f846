"""Child processes that never outlive their parent, even if the parent is killed with SIGKILL.

Design: the kernel does it (``PR_SET_PDEATHSIG``), because a killed parent cannot clean up. The price:
macOS has no equivalent, so there ``kill -9`` leaves children behind; and to the kernel the parent is
the *thread* that started the child, so start children from the main thread.

A child that a library starts through ``multiprocessing``, from any thread, watches its parent itself
(:func:`end_with_parent`): it holds one end of a pipe that closes when the parent dies.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from threading import Thread

_PR_SET_PDEATHSIG = 1


def death_with_parent() -> Callable[[], None] | None:
    """The ``preexec_fn`` of a child; libc is loaded here, before the fork, while that is safe."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return set_death_signal


def end_with_parent() -> None:
    """In a child spawned by ``multiprocessing``: exit as soon as the parent exits, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not spawned"

    def follow() -> None:
        parent.join()
        # Without cleanup: no one is left to clean up for, and a wait for the parent would never end.
        os._exit(1)

    Thread(target=follow, name="end-with-parent", daemon=True).start()
