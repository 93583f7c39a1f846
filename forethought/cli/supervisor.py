"""Child processes that are restarted, logged, stopped in order, and never orphaned.

Design: each child runs in its own session, so Ctrl-C reaches only the supervisor, which stops the
children in a chosen order. When the supervisor is killed, its children die with it
(:mod:`forethought.orphan`): a child waiting for a Redis that died with it would never exit, and a run
resumes from its checkpoint anyway. The price is that a killed supervisor ends the run.

    child.run    consumes: the program   produces: a log, an exit status
                 waits for: its end, the backoff   unblocked by: the process ending; stop, kill
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from forethought.background import backoff_s, wait_for_event
from forethought.orphan import death_with_parent

DONE, REFUSED, SUPERSEDED, NOTHING_LEARNED = 0, 2, 3, 4
"""Exit statuses after which a restart is pointless."""

_FINAL = frozenset({DONE, REFUSED, SUPERSEDED, NOTHING_LEARNED})
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Program:
    """The command of a child. ``name`` is also the name of its log.

    Example:
        ``Program("rollout-1", ("python", "-m", "services.rollout"), {"PATH": "/bin"})``
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Consecutive restarts and their backoff. A child that ran for ``healthy_s`` resets the count.

    Example:
        ``RestartPolicy(max_in_row=5, first_delay_s=0.5)`` waits 0.5, 1, 2, 4 and 8 seconds
    """

    max_in_row: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    healthy_s: float = 30.0

    def delay_s(self, num_in_row: int) -> float:
        """Seconds to wait before the restart after the ``num_in_row``-th consecutive failure."""
        return backoff_s(num_in_row, self.first_delay_s, self.max_delay_s)


class Child:
    """One supervised program; created by :meth:`Supervisor.start`."""

    def __init__(
        self, program: Program, log: Path, say: Callable[[str], None], policy: RestartPolicy
    ) -> None:
        self.program = program
        self.log = log
        self._say = say
        self._policy = policy
        self._stopping = asyncio.Event()
        self._wanted: signal.Signals | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self.ended: asyncio.Task[int] = asyncio.create_task(self._run(), name=program.name)

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    async def stop(self, grace_s: float) -> None:
        """Send SIGTERM and wait for the exit; after ``grace_s`` seconds, send SIGKILL."""
        self._signal(signal.SIGTERM)
        _, still_running = await asyncio.wait([self.ended], timeout=grace_s)
        if still_running:
            self._say(f"{self.name} did not stop within {grace_s:.0f} s of SIGTERM: killed")
            self.kill()
            await asyncio.wait([self.ended])

    def kill(self) -> None:
        """Send SIGKILL to the child and its descendants; no restart."""
        self._signal(signal.SIGKILL)

    def last_lines(self, num_lines: int = 15) -> str:
        """The tail of the child's output since its last start."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-num_lines:])

    async def _run(self) -> int:
        num_in_row = 0
        while True:
            started_s = time.monotonic()
            status = await self._run_once()
            if self._stopping.is_set() or status in _FINAL:
                return status
            lived_s = time.monotonic() - started_s
            num_in_row = 1 if lived_s >= self._policy.healthy_s else num_in_row + 1
            if num_in_row > self._policy.max_in_row:
                self._say(f"{self.name} {describe_exit(status)}; given up ({self.log})")
                return status
            delay_s = self._policy.delay_s(num_in_row)
            self._say(
                f"{self.name} {describe_exit(status)}; restart {num_in_row} of "
                f"{self._policy.max_in_row} in {delay_s:g} s ({self.log})"
            )
            if await wait_for_event(self._stopping, delay_s):
                return status

    async def _run_once(self) -> int:
        with self.log.open("ab") as log:
            self._write_header(log.fileno())
            self._log_start = self.log.stat().st_size
            self._process = await asyncio.create_subprocess_exec(
                *self.program.command,
                env=dict(self.program.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=death_with_parent(),
            )
        if self._wanted is not None:  # stopped while starting
            self._signal(self._wanted)
        return await self._process.wait()

    def _write_header(self, descriptor: int) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(descriptor, f"--- {now} {shlex.join(self.program.command)}\n".encode())

    def _signal(self, wanted: signal.Signals) -> None:
        self._wanted = wanted
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        if wanted is signal.SIGKILL:
            os.killpg(process.pid, wanted)
        else:
            process.send_signal(wanted)


class Supervisor:
    """The children of one run; exiting the context kills those still alive.

    Enter it in the main thread: the kernel kills a child when the *thread* that started it ends.
    """

    def __init__(
        self, logs: Path, say: Callable[[str], None], policy: RestartPolicy | None = None
    ) -> None:
        self._logs = logs
        self._say = say
        self._policy = policy or RestartPolicy()
        self._children: list[Child] = []

    async def __aenter__(self) -> Supervisor:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        await asyncio.gather(*(child.ended for child in self._children), return_exceptions=True)

    def start(self, program: Program, *, restart: bool = True) -> Child:
        """Start a program and keep it alive; with ``restart=False`` its first exit is final."""
        policy = self._policy if restart else RestartPolicy(max_in_row=0)
        child = Child(program, self._logs / f"{program.name}.log", self._say, policy)
        self._children.append(child)
        return child

    async def stop(self, children: Sequence[Child], grace_s: float) -> None:
        """Stop these children concurrently; see :meth:`Child.stop`."""
        await asyncio.gather(*(child.stop(grace_s) for child in children))

    def kill(self) -> None:
        """Send SIGKILL to every child."""
        for child in self._children:
            child.kill()


def describe_exit(status: int) -> str:
    """A readable exit status.

    Example:
        ``describe_exit(-9)`` is ``"was killed by SIGKILL (often: out of memory)"``
    """
    if status >= 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was killed by {name}{' (often: out of memory)' if name == 'SIGKILL' else ''}"
