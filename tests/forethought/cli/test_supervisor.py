"""The supervisor, with real child processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from forethought.cli.supervisor import Child, Program, RestartPolicy, Supervisor, describe_exit

QUICK = RestartPolicy(max_in_row=3, first_delay_s=0.02, max_delay_s=0.05, healthy_s=30.0)
WAITING = "import signal, sys, time; print('ready', flush=True); time.sleep(60)"
DRAINING = (
    "import signal, sys, time\n"
    "def drain(*_):\n"
    "    time.sleep(0.1); print('drained', time.monotonic(), flush=True); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, drain)\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)
DEAF = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


def python(name: str, code: str) -> Program:
    return Program(name, (sys.executable, "-S", "-c", code))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def supervisor(tmp_path: Path, said: list[str]) -> AsyncIterator[Supervisor]:
    async with Supervisor(tmp_path / "logs", said.append, QUICK) as running:
        yield running


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "the condition did not come true in time"
        await asyncio.sleep(0.01)


async def ready(*children: Child) -> None:
    """Waits for output, not existence: a signal before the handler is installed kills."""
    await until(lambda: all(c.log.exists() and "ready\n" in c.log.read_text() for c in children))


def pid_of(child: Child) -> int:
    """The only process whose command line is the child's."""
    mine = psutil.Process().children()
    return next(p.pid for p in mine if p.cmdline() == list(child.program.command))


async def test_output_of_both_kinds_goes_to_the_log_under_a_header(supervisor: Supervisor) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    child = supervisor.start(python("talker", code))
    assert await child.ended == 0
    header, *lines = child.log.read_text().splitlines()
    assert re.match(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*python", header)
    assert sorted(lines) == ["err", "out"]
    assert child.log.name == "talker.log"


async def test_the_last_lines_are_those_of_the_last_start(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    marker = tmp_path / "been"
    code = (
        f"import pathlib, sys; been = pathlib.Path({str(marker)!r})\n"
        "print('second' if been.exists() else 'first'); again = been.exists(); been.touch()\n"
        "sys.exit(2 if again else 1)"
    )
    child = supervisor.start(python("twice", code))
    assert await child.ended == 2
    assert child.last_lines() == "second"
    assert "first\n" in child.log.read_text()


async def test_a_child_that_keeps_dying_is_restarted_with_back_off_and_given_up(
    supervisor: Supervisor, said: list[str]
) -> None:
    child = supervisor.start(python("dier", "import sys; print('born'); sys.exit(7)"))
    assert await child.ended == 7
    assert child.log.read_text().count("born\n") == 1 + QUICK.max_in_row
    assert [line.split(" (")[0] for line in said] == [
        "dier exited with status 7; restart 1 of 3 in 0.02 s",
        "dier exited with status 7; restart 2 of 3 in 0.04 s",
        "dier exited with status 7; restart 3 of 3 in 0.05 s",
        "dier exited with status 7; given up",
    ]


def test_delays_double_up_to_the_largest() -> None:
    policy = RestartPolicy()
    assert [policy.delay_s(row) for row in range(1, 7)] == [0.5, 1, 2, 4, 8, 10]


async def test_a_child_that_ran_long_enough_resets_the_restart_count(
    tmp_path: Path, said: list[str]
) -> None:
    forgiving = RestartPolicy(max_in_row=1, first_delay_s=0.01, healthy_s=0.0)
    async with Supervisor(tmp_path, said.append, forgiving) as running:
        running.start(python("dier", "import sys; sys.exit(7)"))
        await until(lambda: len(said) >= 3)
    assert all("restart 1 of 1" in line for line in said[:3])


@pytest.mark.parametrize("status", [0, 2, 3, 4])
async def test_statuses_after_which_a_restart_is_pointless_are_final(
    supervisor: Supervisor, said: list[str], status: int
) -> None:
    child = supervisor.start(python("final", f"import sys; sys.exit({status})"))
    assert await child.ended == status
    assert said == []


async def test_without_restart_the_first_end_is_final(supervisor: Supervisor) -> None:
    child = supervisor.start(
        python("once", "import sys; print('born'); sys.exit(7)"), restart=False
    )
    assert await child.ended == 7
    assert child.log.read_text().count("born\n") == 1


async def test_a_killed_child_comes_back(supervisor: Supervisor, said: list[str]) -> None:
    child = supervisor.start(python("victim", WAITING))
    await ready(child)
    os.kill(pid_of(child), signal.SIGKILL)
    await until(lambda: child.log.read_text().count("ready\n") == 2)
    assert "killed by SIGKILL (often: out of memory); restart 1 of 3" in said[0]


async def test_stopping_is_ordered_and_gives_time_to_drain(supervisor: Supervisor) -> None:
    first, second, third = (supervisor.start(python(n, DRAINING)) for n in ("a", "b", "c"))
    await ready(first, second, third)
    await supervisor.stop([first], grace_s=5)
    assert not second.ended.done()
    await supervisor.stop([second, third], grace_s=5)
    ended_s = [float(c.last_lines().split()[-1]) for c in (first, second, third)]
    assert ended_s[0] < min(ended_s[1:])
    assert [c.ended.result() for c in (first, second, third)] == [0, 0, 0]


async def test_stopping_does_not_wait_for_a_back_off(tmp_path: Path, said: list[str]) -> None:
    async with Supervisor(
        tmp_path, said.append, RestartPolicy(first_delay_s=60, max_delay_s=60)
    ) as s:
        child = s.start(python("dier", "import sys; sys.exit(7)"))
        await until(lambda: said)
        await asyncio.wait_for(child.stop(grace_s=5), 2)


async def test_stopping_at_once_after_starting_leaves_nothing(supervisor: Supervisor) -> None:
    child = supervisor.start(python("brief", WAITING))
    await asyncio.wait_for(child.stop(grace_s=5), 5)
    assert child.ended.done()


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(
    supervisor: Supervisor, said: list[str]
) -> None:
    child = supervisor.start(python("deaf", DEAF))
    await ready(child)
    await child.stop(grace_s=0.1)
    assert child.ended.result() == -signal.SIGKILL
    assert "did not stop within" in said[0]


async def test_a_second_stop_kills_while_the_first_waits(supervisor: Supervisor) -> None:
    child = supervisor.start(python("deaf", DEAF))
    await ready(child)
    first_stop = asyncio.create_task(child.stop(grace_s=60))
    await asyncio.sleep(0)
    supervisor.kill()
    await asyncio.wait_for(first_stop, 2)
    assert child.ended.result() == -signal.SIGKILL


async def test_leaving_the_context_kills_remaining_children(
    tmp_path: Path, said: list[str]
) -> None:
    async with Supervisor(tmp_path, said.append) as running:
        child = running.start(python("deaf", DEAF))
        await ready(child)
        pid = pid_of(child)
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent_code = (
        "import asyncio, sys, pathlib\n"
        "from forethought.cli.supervisor import Program, Supervisor\n"
        "async def main():\n"
        "    async with Supervisor(pathlib.Path(sys.argv[1]), print) as s:\n"
        f"        child = s.start(Program('deaf', (sys.executable, '-S', '-c', {DEAF!r})))\n"
        "        await child.ended\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code, str(tmp_path)]) as parent:
        log = tmp_path / "deaf.log"
        give_up_s = time.monotonic() + 20
        while not (log.exists() and "ready\n" in log.read_text()):
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 1
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_exit_statuses_are_described() -> None:
    assert describe_exit(1) == "exited with status 1"
    assert describe_exit(-signal.SIGTERM) == "was killed by SIGTERM"
    assert describe_exit(-250) == "was killed by signal 250"
